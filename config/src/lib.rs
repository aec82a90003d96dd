//! The configuration: its types and schema (`types`, `schema`), how it is read and validated (`documents`, `read`), and
//! `check-config`, which does so for a file. Nothing here depends on the AWS SDK or the network.

#![warn(clippy::too_many_lines)]

mod documents;
pub mod duration;
mod fault;
pub mod label;
pub mod origin;
mod read;
mod reader;
mod rules;
mod schema;
#[cfg(test)]
mod settings_table;
pub mod task_definition;
#[cfg(test)]
mod tests;
mod types;
pub mod variables;
mod yaml;

pub use documents::{Document, from_documents, from_yaml};
pub use duration::Limit;
pub use fault::Fault;
pub use rules::is_word;
pub use schema::schema;
pub use task_definition::{FamilyPattern, TaskDefinition};
pub use types::*;
