//! The folder of one run: several may run at once, each with its own logs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::logs::FUNCTIONS;

/// The folder of this run. Its logs stay until a later run begins; everything else is deleted at its end.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Creates it below `local/.stack`, and deletes those of runs that have ended.
    ///
    /// # Errors
    /// When it cannot be created.
    pub(super) fn new(stack: &Path) -> Result<Self> {
        let runs = stack.join("runs");
        for run in fs::read_dir(&runs).into_iter().flatten().flatten() {
            if !is_running(&run.file_name().to_string_lossy()) {
                fs::remove_dir_all(run.path()).with_context(|| format!("delete {}", run.path().display()))?;
            }
        }
        let folder = Self(runs.join(std::process::id().to_string()));
        fs::create_dir_all(folder.temporary()).with_context(|| format!("create {}", folder.0.display()))?;
        Ok(folder)
    }

    /// A file that stays.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The folder of the functions' logs, which stays: a file for each, empty as yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn logs(&self) -> Result<PathBuf> {
        let logs = self.file("logs");
        let files = || FUNCTIONS.iter().try_for_each(|function| fs::write(logs.join(format!("{function}.log")), ""));
        fs::create_dir_all(&logs).and_then(|()| files()).with_context(|| format!("create {}", logs.display()))?;
        Ok(logs)
    }

    /// The folder for temporary files.
    pub(super) fn temporary(&self) -> PathBuf {
        self.0.join("tmp")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be deleted now is deleted by the next run.
        fs::remove_dir_all(self.temporary()).ok();
    }
}

/// Whether a process with that number exists: a run's folder is named after its process.
fn is_running(name: &str) -> bool {
    name.parse().ok().and_then(Pid::from_raw).is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_keeps_its_logs_and_deletes_earlier_ones() -> Result<()> {
        let stack = tempfile::tempdir()?;
        let before = stack.path().join("runs/999999999");
        fs::create_dir_all(&before)?;
        let of_others = stack.path().join("runs").join(std::os::unix::process::parent_id().to_string());
        fs::create_dir_all(&of_others)?;

        let folder = Folder::new(stack.path())?;
        fs::write(folder.file("emulator.log"), "log")?;
        fs::write(folder.temporary().join("large"), "unpacked")?;
        let (log, temporary) = (folder.file("emulator.log"), folder.temporary());
        drop(folder);

        assert!(!before.exists() && of_others.exists());
        assert!(log.exists() && !temporary.exists());
        Ok(())
    }
}
