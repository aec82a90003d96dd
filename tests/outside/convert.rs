//! The functions can read what `./local/convert` writes.

use std::fs;
use std::path::Path;

use shared::config::from_yaml;

#[test]
fn converted_configurations_load() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("convert");
    let mut count = 0;
    for case in fs::read_dir(cases).unwrap() {
        let file = case.unwrap().path().join("expected/agents.yaml");
        let Ok(text) = fs::read_to_string(&file) else { continue };
        if let Err(faults) = from_yaml(&text) {
            panic!("{}: {faults:?}", file.display());
        }
        count += 1;
    }
    assert!(count >= 3, "{count} configurations");
}
