//! `kernels`: what is listed, compiled for a chip that is not here, and compared.

use crate::tools::{Done, aimo};

/// The command for gfx1151; `None`, with a message, where this machine's RADV doesn't compile for chips that are not
/// there.
fn for_gfx1151(args: &[&str]) -> Option<Done> {
    let done = aimo(["kernels", "--isa", "gfx1151"].into_iter().chain(args.iter().copied()));
    if done.status == 1 && (done.stderr.contains("needs AMD's driver") || done.stderr.contains("can't compile for")) {
        println!("skipped: {}", done.stderr);
        return None;
    }
    Some(done)
}

#[test]
fn kernels_are_compiled_for_a_chip_that_is_not_here_and_compared() {
    let Some(done) = for_gfx1151(&["--filter", "q8_0w_matvec", "--json"]) else { return };
    let listing = done.json();
    let kernels = listing["kernels"].as_array().expect("a list");
    assert!(listing["device"].as_str().is_some_and(|d| d.contains("GFX1151")), "{listing}");
    assert!(kernels.len() >= 4, "{listing}");
    for kernel in kernels {
        assert_eq!(kernel["spills"], 0, "{kernel}");
        let [waves, per_weight] = ["waves", "instructions_per_weight"].map(|key| kernel[key].as_f64().unwrap_or(0.0));
        assert!((1.0..=16.0).contains(&waves) && per_weight > 0.0, "{kernel}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let old = folder.path().join("old.json");
    let compare = |listing: &serde_json::Value| {
        std::fs::write(&old, listing.to_string()).expect("written");
        let path = old.to_str().expect("a UTF-8 path");
        for_gfx1151(&["--filter", "q8_0w_matvec", "--diff", path]).expect("it was there before").ok()
    };
    assert_eq!(compare(&listing).trim(), "no kernel is different");
    let mut changed = listing.clone();
    changed["kernels"][0]["code_bytes"] = 7.into();
    let text = compare(&changed);
    assert!(text.contains("7 → ") && text.lines().count() == 2, "{text}");
}

#[test]
fn wrong_names_and_files_are_named() {
    let Some(done) = for_gfx1151(&["--filter", "no such kernel"]) else { return };
    done.fails_naming(&["no such kernel", "--filter"]);
    let done = aimo(["kernels", "--diff", "missing.json"]);
    done.fails_naming(&["missing.json"]);
}
