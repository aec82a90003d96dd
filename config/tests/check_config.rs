//! The program `check-config`, called as in a pipeline.

use std::path::Path;
use std::process::{Command, Output};

fn check(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_check-config"));
    // Without any environment: no account, no secret, no home.
    command.env_clear().current_dir(folder).args(arguments).output().expect("it runs")
}

fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn accepts_the_example() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let (code, text) = said(&check(root, &["agents.example.yaml"]));
    assert_eq!((code, text.as_str()), (Some(0), "agents.example.yaml is valid. Clouds: 2, templates: 2.\n"));
}

#[test]
fn names_every_fault_with_its_path_and_where_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let template = "{name: t, labels: [], taskDefinition: d, connect: ssh}";
    let files = [
        ("1.yaml", "jenkins: {url: https://a/, apiToken: hunter2, user: u}".to_owned()),
        ("2.yaml", format!("clouds: [{{name: c, region: mars-north-1, templates: [{template}]}}]")),
    ];
    for (name, text) in &files {
        std::fs::write(folder.path().join(name), text).expect("written");
    }
    let (code, text) = said(&check(folder.path(), &["2.yaml", "1.yaml"]));
    assert_eq!(code, Some(1));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "1.yaml, 2.yaml has 3 faults:");
    for (line, start) in
        lines[1..].iter().zip(["- clouds[0].region: ", "- clouds[0].templates[0].labels: ", "- jenkins.apiToken: "])
    {
        assert!(line.starts_with(start), "{text}");
    }
    assert!(lines[1].ends_with("(in 2.yaml)") && !text.contains("hunter2"), "{text}");
}

#[test]
fn reports_an_unreadable_file_apart_from_faults() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = check(folder.path(), &["missing.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("cannot read missing.yaml: "));
    assert_eq!(check(folder.path(), &[]).status.code(), Some(2));
    assert_eq!(check(folder.path(), &["--help"]).status.code(), Some(0));
}
