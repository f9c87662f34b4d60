//! Compiles every variant of the manifest to SPIR-V 1.6 for Vulkan 1.3 and writes a table of them for the library,
//! with the sources, which the program can show and let the user replace. A shader that does not compile stops the
//! build with the compiler's message.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "src/compiler.rs"]
mod compiler;
#[path = "src/manifest.rs"]
#[allow(dead_code, reason = "the library uses the rest")]
mod manifest;

use manifest::Kernel;

/// Folders of sources.
const FOLDERS: [&str; 2] = ["comp", "include"];

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    for input in ["build.rs", "src/compiler.rs", "src/manifest.rs"].into_iter().chain(FOLDERS) {
        println!("cargo:rerun-if-changed={input}");
    }
    let mut table = String::from("static SPIRV: [&Words; N_KERNELS] = [\n");
    let mut hasher = DefaultHasher::new();
    let mut count = 0;
    for kernel in Kernel::all() {
        let name = kernel.name();
        let words = compile(&root, kernel);
        words.hash(&mut hasher);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        fs::write(out.join(format!("{name}.spv")), bytes).expect("OUT_DIR can be written");
        writeln!(table, "    &Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.spv\"))),")
            .expect("a string can be written");
        count += 1;
    }
    table.push_str("];\n");
    writeln!(table, "const N_KERNELS: usize = {count};").expect("a string can be written");
    writeln!(table, "/// Hash of all SPIR-V in this build: a key for caches of what drivers make of it.")
        .expect("a string can be written");
    writeln!(table, "pub const HASH: u64 = {:#x};", hasher.finish()).expect("a string can be written");
    table.push_str(&sources(&root));
    fs::write(out.join("spirv.rs"), table).expect("OUT_DIR can be written");
}

fn compile(root: &Path, kernel: Kernel) -> Vec<u32> {
    let read = |folder: &str, file: &str| fs::read_to_string(root.join(folder).join(file));
    let text = read("comp", kernel.source()).unwrap_or_else(|e| panic!("{}: {e}", kernel.source()));
    let define = kernel.definition();
    let include = |name: &str| read("include", name).ok();
    let source = compiler::Source { file: kernel.source(), text: &text, define: define.as_deref(), include: &include };
    compiler::compile(&source).unwrap_or_else(|messages| panic!("{}:\n{messages}", kernel.name()))
}

/// A table of the sources: folder, name and text, in order of the names.
fn sources(root: &Path) -> String {
    let mut files = Vec::new();
    for folder in FOLDERS {
        let entries = fs::read_dir(root.join(folder)).expect("a folder of sources");
        let names = entries.map(|e| e.expect("an entry").file_name().into_string().expect("an ASCII name"));
        files.extend(names.filter(|n| n.ends_with(".comp") || n.ends_with(".glsl")).map(|name| (folder, name)));
    }
    files.sort();
    let mut table = format!("static SOURCES: [SourceFile; {}] = [\n", files.len());
    for (folder, name) in files {
        let text = format!("include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/{folder}/{name}\"))");
        writeln!(table, "    SourceFile {{ folder: {folder:?}, name: {name:?}, text: {text} }},")
            .expect("a string can be written");
    }
    table.push_str("];\n");
    table
}
