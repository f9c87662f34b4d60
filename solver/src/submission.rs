//! The submission: a table `id,answer` with a row for every problem from the first moment on; parquet where the file's
//! name ends so, else csv.
//!
//! Written whole after every problem: a temporary file in the same folder, synced, renamed over the old one, the
//! folder synced. Whoever reads it sees the old state or the new one, never a part. Refuses, before any work starts,
//! what can't be written and what would overwrite the problems themselves. Called by `run`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::parquet;
use crate::problem::ProblemSet;

/// A submission file.
#[derive(Debug)]
pub struct Submission {
    path: PathBuf,
    rows: Vec<(String, i64)>,
    index: HashMap<String, usize>,
}

/// Why an output can't be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The system refused.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// File or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Something that a file can't replace.
    #[error("cannot write {}: it is {found}, not a regular file", path.display())]
    NotAFile {
        /// Path given.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The output would replace the input.
    #[error("the output {} is the file with the problems; choose another name", path.display())]
    OverwritesProblems {
        /// Path given.
        path: PathBuf,
    },
}

impl Submission {
    /// Checks that the file can be written and writes it with the default answer for every problem.
    pub fn create(path: &Path, problems: &ProblemSet, default_answer: i64) -> Result<Submission, OutputError> {
        let failed = |source| OutputError::Write { path: path.to_path_buf(), source };
        // A link is followed: the file that it names is replaced, not the link.
        let target = match fs::canonicalize(path) {
            Ok(target) => target,
            Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_path_buf(),
            Err(e) => return Err(failed(e)),
        };
        match fs::metadata(&target) {
            Ok(meta) if meta.is_dir() => {
                return Err(OutputError::NotAFile { path: path.to_path_buf(), found: "a folder" });
            }
            Ok(meta) if !meta.is_file() => {
                return Err(OutputError::NotAFile { path: path.to_path_buf(), found: "a device or pipe" });
            }
            Ok(meta) if meta.permissions().readonly() => {
                return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, "it is read-only")));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        let input = problems.path.as_ref().and_then(|p| fs::canonicalize(p).ok());
        if input.is_some_and(|input| input == target) {
            return Err(OutputError::OverwritesProblems { path: path.to_path_buf() });
        }
        let rows: Vec<(String, i64)> = problems.problems.iter().map(|p| (p.id.clone(), default_answer)).collect();
        let index = rows.iter().enumerate().map(|(i, (id, _))| (id.clone(), i)).collect();
        remove_leftovers(&target);
        let submission = Submission { path: target, rows, index };
        submission.write()?;
        Ok(submission)
    }

    /// Sets the answer of a problem, which gets a row if it has none, and writes the file.
    pub fn answer(&mut self, id: &str, answer: i64) -> Result<(), OutputError> {
        match self.index.get(id) {
            Some(&row) => self.rows[row].1 = answer,
            None => {
                self.index.insert(id.to_string(), self.rows.len());
                self.rows.push((id.to_string(), answer));
            }
        }
        self.write()
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the file as it should be now.
    pub fn write(&self) -> Result<(), OutputError> {
        let table = if is_parquet(&self.path) { parquet::encode(&self.rows) } else { csv_table(&self.rows) };
        let written = table.and_then(|bytes| write_atomically(&self.path, &bytes));
        written.map_err(|source| OutputError::Write { path: self.path.clone(), source })
    }
}

/// Whether a file is written as parquet: by the ending of its name.
pub fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"))
}

fn csv_table(rows: &[(String, i64)]) -> io::Result<Vec<u8>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["id", "answer"])?;
    for (id, answer) in rows {
        table.write_record([id, &answer.to_string()])?;
    }
    table.into_inner().map_err(|e| io::Error::other(e.to_string()))
}

/// Replaces a file so that no crash leaves a part of it.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    let mut file = NamedTempFile::with_prefix_in(temporary_prefix(path), folder)?;
    file.write_all(bytes)?;
    set_mode(file.as_file(), path)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    File::open(folder)?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary_prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".tmp-");
    prefix
}

/// Removes temporary files of this output that a process left behind when it was killed; what can't be removed stays.
fn remove_leftovers(path: &Path) {
    let prefix = temporary_prefix(path);
    for entry in fs::read_dir(folder_of(path)).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// A temporary file is private to its owner; the result gets the mode of the file that it replaces, or the usual one.
#[cfg(unix)]
fn set_mode(file: &File, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path).map_or(0o644, |m| m.permissions().mode() & 0o777);
    file.set_permissions(fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn set_mode(_: &File, _: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Problem, ProblemSet};

    fn problems(ids: &[&str], path: Option<PathBuf>) -> ProblemSet {
        let problem = |id: &&str| Problem { id: id.to_string(), text: "x".to_string(), answer: None };
        ProblemSet { name: "test".to_string(), path, problems: ids.iter().map(problem).collect() }
    }

    #[test]
    fn every_id_has_a_row_from_the_start_and_nothing_else_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.csv");
        let mut submission = Submission::create(&path, &problems(&["a", "b,\"c\"", "d"], None), 7).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "id,answer\na,7\n\"b,\"\"c\"\"\",7\nd,7\n");
        submission.answer("b,\"c\"", 42).unwrap();
        submission.answer("e", 5).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "id,answer\na,7\n\"b,\"\"c\"\"\",42\nd,7\ne,5\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_name_decides_the_form() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.Parquet");
        let mut submission = Submission::create(&path, &problems(&["a"], None), 7).unwrap();
        submission.answer("b,é", -4).unwrap();
        let rows = parquet::decode(&fs::read(&path).unwrap());
        assert_eq!(rows, [("a".to_string(), 7), ("b,é".to_string(), -4)]);
        assert!(!is_parquet(Path::new("parquet")) && !is_parquet(Path::new("a.parquet/out.csv")));
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.csv");
        for name in [".out.csv.tmp-Ab3", ".other.csv.tmp-Ab3"] {
            fs::write(dir.path().join(name), "id,ans").unwrap();
        }
        Submission::create(&path, &problems(&["a"], None), 7).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".other.csv.tmp-Ab3", "out.csv"]);
    }

    #[test]
    fn outputs_that_cannot_be_written_are_refused_first() {
        let dir = tempfile::tempdir().unwrap();
        let set = problems(&["a"], None);
        let refused = |path: &Path| Submission::create(path, &set, 0).unwrap_err();
        assert!(matches!(refused(dir.path()), OutputError::NotAFile { found: "a folder", .. }));
        assert!(matches!(refused(Path::new("/dev/null")), OutputError::NotAFile { .. }));
        let missing = dir.path().join("no/such/folder/out.csv");
        let error = refused(&missing);
        assert!(matches!(error, OutputError::Write { .. }), "{error}");
        assert!(error.to_string().contains("out.csv"), "{error}");
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(refused(&file.join("out.csv")), OutputError::Write { .. }));
        let mut read_only = fs::metadata(&file).unwrap().permissions();
        read_only.set_readonly(true);
        fs::set_permissions(&file, read_only).unwrap();
        assert!(refused(&file).to_string().contains("read-only"));
    }

    #[test]
    fn the_problems_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("p.csv");
        fs::write(&input, "id,problem\na,x\n").unwrap();
        let set = problems(&["a"], Some(input.clone()));
        let link = dir.path().join("link.csv");
        #[cfg(unix)]
        std::os::unix::fs::symlink(&input, &link).unwrap();
        for path in [&input, &dir.path().join("./p.csv"), &link] {
            let error = Submission::create(path, &set, 0).unwrap_err();
            assert!(matches!(error, OutputError::OverwritesProblems { .. }), "{error}");
        }
        assert_eq!(fs::read_to_string(&input).unwrap(), "id,problem\na,x\n");
    }

    #[test]
    #[cfg(unix)]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target.csv"), dir.path().join("link.csv"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        Submission::create(&link, &problems(&["a"], None), 3).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&target).unwrap(), "id,answer\na,3\n");
    }
}
