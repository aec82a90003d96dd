//! `check-config FILE…`: prints the faults with which the functions would not start, without secrets and without an
//! account.

use std::process::ExitCode;

use config::{Document, from_documents};

const HELP: &str = include_str!("usage.txt");

/// The largest SSM parameter of the standard and the intelligent tier (Systems Manager quotas).
const PARAMETER_BYTES: usize = 8192;

fn main() -> ExitCode {
    let mut paths: Vec<String> = std::env::args().skip(1).collect();
    if paths.iter().any(|path| path == "--help" || path == "-h") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    if paths.is_empty() || paths.iter().any(|path| path.starts_with('-')) {
        eprint!("{HELP}");
        return ExitCode::from(2);
    }
    paths.sort();
    let mut documents = Vec::new();
    for path in &paths {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let source = if paths.len() == 1 { String::new() } else { path.clone() };
                documents.push(Document { source, text });
            }
            Err(error) => {
                eprintln!("cannot read {path}: {error}");
                return ExitCode::from(2);
            }
        }
    }
    for (path, document) in paths.iter().zip(&documents) {
        let bytes = document.text.len();
        if bytes > PARAMETER_BYTES {
            eprintln!(
                "note: {path} has {bytes} bytes, but an SSM parameter holds {PARAMETER_BYTES}: split its clouds among several files"
            );
        }
    }
    check(&documents, &paths.join(", "))
}

fn check(documents: &[Document], name: &str) -> ExitCode {
    let (config, faults) = from_documents(documents);
    match config {
        Some(config) if faults.is_empty() => {
            let templates: usize = config.clouds.iter().map(|cloud| cloud.templates.len()).sum();
            println!("{name} is valid. Clouds: {}, templates: {templates}.", config.clouds.len());
            ExitCode::SUCCESS
        }
        _ => {
            println!("{name} has {} fault{}:", faults.len(), if faults.len() == 1 { "" } else { "s" });
            faults.iter().for_each(|fault| println!("- {fault}"));
            ExitCode::FAILURE
        }
    }
}
