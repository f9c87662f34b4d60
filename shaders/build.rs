//! Compiles every variant of the manifest to SPIR-V 1.6 for Vulkan 1.3 and writes a table of them for the library.
//! A shader that does not compile stops the build with the compiler's message.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{env, fs};

use glslang::include::{IncludeHandler, IncludeResult, IncludeType};
use glslang::{Compiler, CompilerOptions, ShaderInput, ShaderSource, ShaderStage, SpirvVersion, Target, VulkanVersion};

#[path = "src/manifest.rs"]
#[allow(dead_code, reason = "the library uses the rest")]
mod manifest;

use manifest::Kernel;

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    for input in ["build.rs", "src/manifest.rs", "comp", "include"] {
        println!("cargo:rerun-if-changed={input}");
    }
    let compiler = Compiler::acquire().expect("the GLSL compiler starts");
    let mut table = String::from("static SPIRV: [&Words; N_KERNELS] = [\n");
    let mut hasher = DefaultHasher::new();
    let mut count = 0;
    for kernel in Kernel::all() {
        let name = kernel.name();
        let words = compile(compiler, &root, kernel);
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
    fs::write(out.join("spirv.rs"), table).expect("OUT_DIR can be written");
}

fn compile(compiler: &Compiler, root: &Path, kernel: Kernel) -> Vec<u32> {
    let path = root.join("comp").join(kernel.source());
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let source = ShaderSource::from(text);
    let options = CompilerOptions {
        target: Target::Vulkan { version: VulkanVersion::Vulkan1_3, spirv_version: SpirvVersion::SPIRV1_6 },
        ..CompilerOptions::default()
    };
    let define = kernel.weight_type().map(|w| format!("WEIGHT_{}", w.name()));
    let defines: Vec<(&str, Option<&str>)> = define.iter().map(|d| (d.as_str(), Some("1"))).collect();
    let mut includes = Includes { folder: root.join("include") };
    let fail = |e: glslang::error::GlslangError| -> ! { panic!("{} ({}): {e}", path.display(), kernel.name()) };
    let input = ShaderInput::new(&source, ShaderStage::Compute, &options, Some(&defines), Some(&mut includes))
        .unwrap_or_else(|e| fail(e));
    let shader = compiler.create_shader(input).unwrap_or_else(|e| fail(e));
    shader.compile().unwrap_or_else(|e| fail(e))
}

/// Finds `#include "file"` in `include/`.
struct Includes {
    folder: PathBuf,
}

impl IncludeHandler for Includes {
    fn include(&mut self, _: IncludeType, name: &str, _: &str, _: usize) -> Option<IncludeResult> {
        let data = fs::read_to_string(self.folder.join(name)).ok()?;
        Some(IncludeResult { name: name.to_owned(), data })
    }
}
