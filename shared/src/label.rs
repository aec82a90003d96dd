//! Jenkins labels and label expressions.

use std::collections::BTreeSet;

/// The labels of a template.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct LabelSet(pub BTreeSet<String>);
