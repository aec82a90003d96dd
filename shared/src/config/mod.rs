//! The configuration: what is written (`types`), how it is read (`yaml`, `load`), what it has to hold (`check`), and the
//! environment that says where it is (`settings`).

pub mod check;
pub mod duration;
pub mod load;
pub mod settings;
pub mod task_definition;
pub mod types;
pub mod variables;
mod yaml;

pub use duration::Limit;
pub use settings::{Queues, Settings};
pub use task_definition::{FamilyPattern, TaskDefinition};
pub use types::*;

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::Config;

    fn schema() -> Value {
        schemars::schema_for!(Config).into()
    }

    #[test]
    fn the_example_is_a_configuration_and_fits_the_schema() {
        let example = include_str!("../../../agents.example.yaml");
        let config = super::load::from_yaml(example).expect("good");
        assert!(config.jenkins.registers_nodes());
        let (value, _) = super::yaml::parse(example).expect("YAML");
        let validator = jsonschema::validator_for(&schema()).expect("a schema");
        let errors: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new());
    }

    #[test]
    fn the_schema_that_is_shipped_is_that_of_the_types() {
        let schema = serde_json::to_string_pretty(&schema()).expect("JSON") + "\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../agents.schema.json");
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(path, &schema).expect("written");
        }
        let shipped = std::fs::read_to_string(path).expect("agents.schema.json");
        assert!(shipped == schema, "run the tests with UPDATE_SCHEMA=1 and commit agents.schema.json");
    }
}
