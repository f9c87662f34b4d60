//! Compiles the Python library (standard library, sympy, mpmath and the files of `python/`) to frozen bytecode.
//!
//! `GUEST_PYTHON_PATH` names a directory with the packages `sympy` and `mpmath`; `cargo xtask guest` sets it. Modules
//! that maths code never needs are left out (`SKIPPED`). The bytecode is wrapped in LZ4 blocks without compression:
//! the finished module is compressed as a whole, which works far better on plain bytes.

use rustpython_compiler::{CompileOpts, Mode};
use rustpython_compiler_core::frozen::{FrozenCodeObject, FrozenLib, FrozenModule};
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

/// Modules of the standard library, and parts of sympy, that are left out with everything below them.
const SKIPPED: &[&str] = &[
    "__hello__",
    "__phello__",
    "_aix_support",
    "_android_support",
    "_apple_support",
    "_ios_support",
    "_osx_support",
    "_pyrepl",
    "antigravity",
    "compileall",
    "ctypes",
    "curses",
    "dbm",
    "ensurepip",
    "ftplib",
    "getpass",
    "idlelib",
    "imaplib",
    "lib2to3",
    "mailbox",
    "modulefinder",
    "msilib",
    "multiprocessing",
    "netrc",
    "nturl2path",
    "optparse",
    "poplib",
    "pty",
    "pyclbr",
    "pydoc_data",
    "smtplib",
    "socketserver",
    "sqlite3",
    "test",
    "this",
    "tkinter",
    "trace",
    "tty",
    "turtle",
    "turtledemo",
    "venv",
    "wave",
    "webbrowser",
    "wsgiref",
    "xml",
    "xmlrpc",
    "zipapp",
    "mpmath.tests",
    "sympy.parsing.autolev",
    "sympy.parsing.c",
    "sympy.parsing.fortran",
    "sympy.parsing.latex._antlr",
    "sympy.physics.biomechanics",
    "sympy.physics.continuum_mechanics",
    "sympy.physics.control",
    "sympy.physics.hep",
    "sympy.physics.mechanics",
    "sympy.physics.optics",
    "sympy.physics.quantum",
    "sympy.physics.vector",
    "sympy.this",
];

/// The only text encodings that are kept.
const ENCODINGS: &[&str] = &[
    "aliases",
    "ascii",
    "base64_codec",
    "charmap",
    "cp1252",
    "cp437",
    "hex_codec",
    "idna",
    "iso8859_1",
    "latin_1",
    "punycode",
    "quopri_codec",
    "raw_unicode_escape",
    "rot_13",
    "unicode_escape",
    "utf_16",
    "utf_16_be",
    "utf_16_le",
    "utf_32",
    "utf_32_be",
    "utf_32_le",
    "utf_8",
    "utf_8_sig",
];

/// Stack of the module: deep recursion in Python code needs more than the linker's default (`src/lib.rs`).
const GUEST_STACK_BYTES: usize = 32 << 20;

/// The compiler recurses over deep expressions, unoptimised in a build script.
const STACK_BYTES: usize = 1 << 30;

fn main() {
    println!("cargo:rustc-link-arg-cdylib=-zstack-size={GUEST_STACK_BYTES}");
    let freezing = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(freeze_library);
    freezing.expect("a thread").join().expect("the library compiles");
}

fn freeze_library() {
    println!("cargo:rerun-if-env-changed=GUEST_PYTHON_PATH");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=python");
    let packages = PathBuf::from(env::var_os("GUEST_PYTHON_PATH").expect("GUEST_PYTHON_PATH: run `cargo xtask guest`"));
    println!("cargo:rerun-if-changed={}", packages.display());

    // Later roots override earlier ones, module by module.
    let mut sources = BTreeMap::new();
    collect(Path::new(rustpython_pylib::LIB_PATH), "", &mut sources);
    collect(&packages, "", &mut sources);
    sources.retain(|name, _| !is_skipped(name));
    collect(Path::new("python"), "", &mut sources);

    let modules: Vec<(String, FrozenModule<Vec<u8>>)> =
        sources.iter().map(|(name, source)| freeze(name, source)).collect();
    let library = FrozenLib::encode(modules.iter().map(|(name, module)| {
        let code = FrozenCodeObject { bytes: &module.code.bytes };
        (name.as_str(), FrozenModule { code, package: module.package })
    }));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("library.frozen");
    fs::write(&out, &library.bytes).unwrap_or_else(|error| panic!("cannot write {}: {error}", out.display()));
}

struct Source {
    path: PathBuf,
    /// As tracebacks show it, e.g. `sympy/core/add.py`.
    shown: String,
    package: bool,
}

/// Maps dotted module names to files, below `directory`.
fn collect(directory: &Path, package: &str, sources: &mut BTreeMap<String, Source>) {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|error| panic!("cannot list {}: {error}", directory.display()));
    for entry in entries {
        let path = entry.unwrap_or_else(|error| panic!("cannot list {}: {error}", directory.display())).path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let dotted = if package.is_empty() { stem.to_owned() } else { format!("{package}.{stem}") };
        let prefix = package.replace('.', "/");
        if path.is_dir() {
            collect(&path, &dotted, sources);
        } else if path.extension().is_some_and(|extension| extension == "py") {
            let is_init = stem == "__init__";
            let shown = format!("{prefix}{}{stem}.py", if prefix.is_empty() { "" } else { "/" });
            let name = if is_init { package.to_owned() } else { dotted };
            sources.insert(name, Source { path, shown, package: is_init });
        }
    }
}

fn is_skipped(name: &str) -> bool {
    let below = |root: &str| name == root || name.strip_prefix(root).is_some_and(|rest| rest.starts_with('.'));
    let is_test = name.split('.').any(|part| matches!(part, "tests" | "benchmarks"));
    let encoding = name.strip_prefix("encodings.").is_some_and(|encoding| !ENCODINGS.contains(&encoding));
    is_test || encoding || SKIPPED.iter().any(|root| below(root))
}

fn freeze(name: &str, source: &Source) -> (String, FrozenModule<Vec<u8>>) {
    let text = fs::read_to_string(&source.path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", source.path.display()));
    let text = text.trim_start_matches('\u{feff}');
    let code = rustpython_compiler::compile(text, Mode::Exec, &source.shown, CompileOpts::default())
        .unwrap_or_else(|error| panic!("{}: {error}", source.path.display()));
    let mut bytecode = Vec::new();
    rustpython_compiler_core::marshal::serialize_code(&mut bytecode, &code);
    let code = FrozenCodeObject { bytes: lz4_literals(&bytecode) };
    (name.to_owned(), FrozenModule { code, package: source.package })
}

/// An LZ4 block that holds `data` as one run of literals, behind its length in four bytes (the form that the frozen
/// loader reads; lz4 block format: token, extra length bytes, literals).
fn lz4_literals(data: &[u8]) -> Vec<u8> {
    let mut block = u32::try_from(data.len()).expect("a module under 4 GiB").to_le_bytes().to_vec();
    if data.len() < 15 {
        block.push((data.len() as u8) << 4);
    } else {
        block.push(0xf0);
        let extra = data.len() - 15;
        block.resize(block.len() + extra / 255, 255);
        block.push((extra % 255) as u8);
    }
    block.extend_from_slice(data);
    block
}
