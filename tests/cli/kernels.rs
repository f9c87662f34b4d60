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

/// The driver ends a process that asks it for such a chip, and says so in its own words.
#[test]
fn a_chip_that_the_driver_does_not_know_is_named() {
    if for_gfx1151(&["--filter", "f32_swiglu"]).is_none() {
        return;
    }
    for chip in ["gfx1100", "no such chip", ""] {
        let done = aimo(["-q", "kernels", "--isa", chip]);
        assert_eq!(done.stderr.lines().count(), 2, "an error and a next step: {}", done.stderr);
        done.fails_naming(&["--isa", chip, "gfx1151"]);
    }
}

#[test]
fn exported_shaders_are_edited_and_used() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().to_str().expect("a UTF-8 path");
    let written = aimo(["kernels", "--export", dir]).ok();
    assert!(written.contains("files written"), "{written}");
    assert!(aimo(["kernels", "--export", dir]).ok().contains("are kept"), "an edit is not overwritten");
    let path = folder.path().join("include/activation.glsl");
    let text = std::fs::read_to_string(&path).expect("exported");
    std::fs::write(&path, text.replace("exp(-", "exp(-0.5 * ")).expect("written");
    let Some(before) = for_gfx1151(&["--filter", "f32_swiglu", "--json"]) else { return };
    let old = folder.path().join("old.json");
    std::fs::write(&old, before.ok()).expect("written");
    let args = ["--filter", "f32_swiglu", "--shaders", dir, "--diff", old.to_str().expect("a UTF-8 path")];
    let changes = for_gfx1151(&args).expect("it was there before").ok();
    assert!(changes.contains("f32_swiglu") && changes.contains(" → "), "{changes}");
    // The compiler's message, with file and line.
    std::fs::write(&path, text + "float broken = ;\n").expect("written");
    let done = for_gfx1151(&["--filter", "f32_swiglu", "--shaders", dir]).expect("it was there before");
    done.fails_naming(&["f32_swiglu does not compile", "activation.glsl:", "syntax error"]);
}

#[test]
fn folders_without_shaders_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().to_str().expect("a UTF-8 path");
    aimo(["kernels", "--shaders", dir]).fails_naming(&["no shaders", "--export"]);
    std::fs::write(folder.path().join("f32_ropes.comp"), "").expect("written");
    aimo(["kernels", "--shaders", dir]).fails_naming(&["f32_ropes.comp", "f32_rope.comp"]);
}

#[test]
fn wrong_names_and_files_are_named() {
    let Some(done) = for_gfx1151(&["--filter", "no such kernel"]) else { return };
    done.fails_naming(&["no such kernel", "--filter"]);
    let done = aimo(["kernels", "--diff", "missing.json"]);
    done.fails_naming(&["missing.json"]);
}
