//! Prints the story of a build from a run's logs: `story FOLDER [BUILD]`. `local/story` finds the folder.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use local::{logs, story};

fn main() -> ExitCode {
    match answer() {
        Ok(text) => {
            // Whoever reads may have seen enough.
            std::io::stdout().write_all(text.as_bytes()).ok();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn answer() -> Result<String> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("which folder?")?;
    let lines = logs::read(Path::new(&folder))?;
    let stories = story::stories(&lines);
    let list = || stories.iter().map(|story| story.summary() + "\n").collect::<String>();
    let Some(what) = arguments.next() else {
        return Ok(if stories.is_empty() { format!("no build in {folder} yet\n") } else { list() });
    };
    let found = story::find(&stories, &what);
    if stories.is_empty() {
        bail!("{what}: no build in {folder} yet");
    }
    if found.is_empty() {
        bail!("{what}: no such request, build or agent in {folder}; there are:\n{}", list().trim_end());
    }
    Ok(found.iter().map(|story| story.text()).collect::<Vec<_>>().join("\n"))
}
