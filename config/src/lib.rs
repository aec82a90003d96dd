//! The configuration: what can be written (`types`, `schema`), how it is read and what it has to hold (`documents`,
//! `read`), and `check-config`, which says the same of a file. Nothing here knows AWS' SDK or the network.

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
