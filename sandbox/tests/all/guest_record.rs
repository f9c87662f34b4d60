//! The module in the repository was built from the sources in the repository.

use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn sources_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources_below(&path, found);
        } else if path.extension().is_some_and(|extension| ["rs", "py", "patch"].iter().any(|e| extension == *e)) {
            found.push(path);
        }
    }
}

#[test]
fn the_module_and_its_sources_are_the_recorded_ones() {
    let sandbox = Path::new(env!("CARGO_MANIFEST_DIR"));
    let record = fs::read_to_string(sandbox.join("guest.sha256")).expect("sandbox/guest.sha256");
    let recorded: BTreeMap<String, String> = record
        .lines()
        .map(|line| line.split_once("  ").expect("`<sha256>  <path>`"))
        .map(|(digest, name)| (name.to_owned(), digest.to_owned()))
        .collect();

    let mut files = vec![sandbox.join("guest.wasm.zst")];
    files.extend(
        ["Cargo.toml", "Cargo.lock", "build.rs", "requirements.txt"].map(|name| sandbox.join("guest").join(name)),
    );
    for directory in ["accel/src", "guest/patches", "guest/python", "guest/src"] {
        sources_below(&sandbox.join(directory), &mut files);
    }
    let actual: BTreeMap<String, String> = files
        .iter()
        .map(|file| {
            let name = file.strip_prefix(sandbox).expect("below sandbox/").to_string_lossy().replace('\\', "/");
            (name, format!("{:x}", Sha256::digest(fs::read(file).expect("a source"))))
        })
        .collect();
    assert!(files.len() > 8, "the sources were not found: {files:?}");

    let mut changed: Vec<&String> = actual.keys().filter(|name| actual.get(*name) != recorded.get(*name)).collect();
    changed.extend(recorded.keys().filter(|name| !actual.contains_key(*name)));
    assert!(changed.is_empty(), "run `cargo xtask guest`: the module was built from other versions of {changed:?}");
}
