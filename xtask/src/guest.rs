//! `cargo xtask guest`: builds the Python interpreter of the sandbox for WebAssembly.
//!
//! Owns the tool chain of that build and the record that ties the module in the repository to its sources; the build
//! itself is cargo's, in `sandbox/guest`. Uses rustup's `wasm32-wasip1` target where it is installed. Where it is not
//! and cannot be fetched, Debian's copies of the Rust library's source and of wasi-libc, unpacked below the user's
//! cache, take its place: nothing is installed. Crates that `sandbox/guest/patches` changes are copied, patched, below
//! the guest's target directory. Takes ten to twenty minutes the first time.

use crate::setup::{self, archive::Archive};
use crate::shell::{self, step};
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

const TARGET: &str = "wasm32-wasip1";
/// Debian's suite that carries the source of current Rust libraries.
const DEBIAN_SUITE: &str = "trixie-backports";
/// zstd's strongest level whose window the decoder in the sandbox accepts.
const ZSTD_LEVEL: &str = "-19";
const ZSTD_WINDOW: &str = "--long=26";
/// Directories below `sandbox/` whose Rust, Python and patch files the module is made of.
const SOURCES: [&str; 4] = ["accel/src", "guest/patches", "guest/python", "guest/src"];

/// Builds the module and its record: `sandbox/guest.wasm.zst` and `sandbox/guest.sha256`.
pub fn build(root: &Path) -> Result<()> {
    let sandbox = root.join("sandbox");
    let guest = sandbox.join("guest");
    let cache = setup::cache_dir()?.join("guest-toolchain");
    let python = python_packages(&guest, &cache)?;
    let tools = ToolChain::find(&cache)?;
    let patched = patch_crates(&guest)?;

    step("building the Python interpreter for WebAssembly");
    let mut cargo = Command::new("cargo");
    // Cargo sets these for its own children; the guest is another workspace.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PKG_")) {
        cargo.env_remove(name);
    }
    cargo.env_remove("CARGO_MANIFEST_DIR").env_remove("RUSTFLAGS").env("GUEST_PYTHON_PATH", &python);
    // The interpreter's build script asks git about its own repository; it must not find this one.
    cargo.env("GIT_CEILING_DIRECTORIES", &patched);
    cargo.current_dir(&guest).args(["build", "--release", "--lib", "--locked", "--ignore-rust-version"]);
    cargo.args(["--target", TARGET]).env("CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS", tools.rust_flags(&guest)?);
    if let ToolChain::Debian { library, .. } = &tools {
        cargo.arg("-Zbuild-std=std,panic_abort");
        cargo.env("RUSTC_BOOTSTRAP", "1").env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
    }
    shell::run(&mut cargo)?;

    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| guest.join("target"), PathBuf::from);
    let wasm = target.join(TARGET).join("release").join("guest.wasm");
    let module = sandbox.join("guest.wasm.zst");
    let stripped = wasm.with_extension("stripped.wasm");
    let bytes = fs::read(&wasm).with_context(|| format!("cannot read {}", wasm.display()))?;
    let mut bytes = without_custom_sections(&bytes).with_context(|| format!("{} is no module", wasm.display()))?;
    hide_path(&mut bytes, &sandbox);
    fs::write(&stripped, bytes).with_context(|| format!("cannot write {}", stripped.display()))?;
    compress(&stripped, &module)?;
    let record = sandbox.join("guest.sha256");
    fs::write(&record, record_of(&sandbox)?).with_context(|| format!("cannot write {}", record.display()))?;
    let n_bytes = fs::metadata(&module).with_context(|| format!("cannot read {}", module.display()))?.len();
    step(&format!("{}: {:.1} MB", module.display(), n_bytes as f64 / 1e6));
    Ok(())
}

/// Overwrites every occurrence of `path` by slashes and its last part, at the same length: the places of panics carry
/// the paths of crates that lie beside the guest, which no prefix of the compiler's flags covers.
fn hide_path(module: &mut [u8], path: &Path) {
    let path = path.as_os_str().as_encoded_bytes();
    let last = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    let mut shown = vec![b'/'; last];
    shown.extend_from_slice(&path[last..]);
    let mut from = 0;
    while let Some(at) = module[from..].windows(path.len()).position(|window| window == path) {
        module[from + at..][..path.len()].copy_from_slice(&shown);
        from += at + path.len();
    }
}

/// A WebAssembly module without names and the like: magic and version, then sections of an id, a length (LEB128) and
/// content; id 0 is a custom section. None for bytes that are no such thing.
fn without_custom_sections(module: &[u8]) -> Option<Vec<u8>> {
    let (head, mut rest) = module.split_first_chunk::<8>().filter(|(head, _)| head.starts_with(b"\0asm"))?;
    let mut kept = head.to_vec();
    while let Some(id) = rest.first() {
        let n_len_bytes = 1 + rest[1..].iter().position(|byte| byte & 0x80 == 0)?;
        let n_bytes = rest[1..=n_len_bytes].iter().rev().fold(0usize, |n, byte| n << 7 | usize::from(byte & 0x7f));
        let (section, after) = rest.split_at_checked(1 + n_len_bytes + n_bytes)?;
        if *id != 0 {
            kept.extend_from_slice(section);
        }
        rest = after;
    }
    Some(kept)
}

/// Compresses `wasm` into `packed` with the `zstd` program; the decoder in the sandbox is Rust. The file appears when it
/// is whole, and with the time of then: cargo, which goes by times, would not see one that is as old as `wasm`.
fn compress(wasm: &Path, packed: &Path) -> Result<()> {
    step("compressing the module");
    ensure!(
        shell::capture(Command::new("zstd").arg("--version")).is_some(),
        "the program `zstd` is missing: install it (on Debian: apt-get install zstd)"
    );
    let mut zstd = Command::new("zstd");
    let unfinished = packed.with_extension("part");
    zstd.args(["--quiet", "--force", "--no-progress", ZSTD_LEVEL, ZSTD_WINDOW]).arg(wasm).arg("-o").arg(&unfinished);
    shell::run(&mut zstd)?;
    let file = fs::File::options().write(true).open(&unfinished);
    file.and_then(|file| file.set_modified(SystemTime::now()))
        .and_then(|()| fs::rename(&unfinished, packed))
        .with_context(|| format!("cannot write {}", packed.display()))
}

/// One line `<sha256>  <path below sandbox/>` for every source and for the module, sorted by path.
fn record_of(sandbox: &Path) -> Result<String> {
    let mut files = vec![sandbox.join("guest.wasm.zst")];
    for name in ["Cargo.toml", "Cargo.lock", "build.rs", "requirements.txt"] {
        files.push(sandbox.join("guest").join(name));
    }
    for directory in SOURCES {
        collect(&sandbox.join(directory), &mut files)?;
    }
    let mut lines = Vec::new();
    for file in &files {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(sandbox).expect("collected below sandbox/").display().to_string();
        lines.push((name, format!("{:x}", Sha256::digest(bytes))));
    }
    lines.sort();
    Ok(lines.iter().map(|(name, digest)| format!("{digest}  {name}\n")).collect())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| ["rs", "py", "patch"].iter().any(|e| extension == *e)) {
            files.push(path);
        }
    }
    Ok(())
}

/// sympy and mpmath at the versions and hashes of `requirements.txt`, unpacked below the cache.
fn python_packages(guest: &Path, cache: &Path) -> Result<PathBuf> {
    let requirements = guest.join("requirements.txt");
    let text = fs::read(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    let directory = cache.join(format!("python-{:.16}", format!("{:x}", Sha256::digest(text))));
    if directory.join("sympy").is_dir() && directory.join("mpmath").is_dir() {
        return Ok(directory);
    }
    step("fetching sympy and mpmath");
    let unfinished = directory.with_extension("part");
    let _ = fs::remove_dir_all(&unfinished);
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--require-hashes", "--target"]);
    shell::run(pip.arg(&unfinished).arg("-r").arg(&requirements))?;
    for extra in ["bin", "share", "isympy.py"] {
        let path = unfinished.join(extra);
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
    fs::rename(&unfinished, &directory).with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

/// Copies the crates that the patches in `patches/<crate>-<version>/` change to `target/patched/<crate>`, where the
/// guest's manifest expects them, and applies the patches, in the order of their names. A copy that already carries them
/// is kept.
fn patch_crates(guest: &Path) -> Result<PathBuf> {
    let patched = guest.join("target").join("patched");
    for entry in fs::read_dir(guest.join("patches")).context("cannot list sandbox/guest/patches")? {
        let directory = entry?.path();
        let stem = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (name, version) = stem.rsplit_once('-').with_context(|| format!("{stem}: not <crate>-<version>"))?;
        let mut patches = Vec::new();
        collect(&directory, &mut patches)?;
        patches.sort();
        let mut digest = Sha256::new();
        for patch in &patches {
            digest.update(fs::read(patch).with_context(|| format!("cannot read {}", patch.display()))?);
        }
        let (copy, digest) = (patched.join(name), format!("{:x}", digest.finalize()));
        let stamp = copy.join("applied.sha256");
        if fs::read_to_string(&stamp).is_ok_and(|applied| applied == digest) {
            continue;
        }
        step(&format!("patching {name} {version}"));
        // A half-made copy has no stamp and is made again.
        let _ = fs::remove_dir_all(&copy);
        copy_tree(&crate_source(&patched.join("probe"), name, version)?, &copy)?;
        // Outside a repository, as git sees it: inside one it would skip files that are ignored there.
        let mut git = Command::new("git");
        git.current_dir(&copy).env("GIT_CEILING_DIRECTORIES", &patched).arg("apply").args(&patches);
        shell::run(&mut git)?;
        fs::write(&stamp, digest).with_context(|| format!("cannot write {}", stamp.display()))?;
    }
    Ok(patched)
}

/// The published source of a crate, as cargo fetches and verifies it: by way of an empty package that depends on it.
fn crate_source(probe: &Path, name: &str, version: &str) -> Result<PathBuf> {
    let manifest = probe.join("Cargo.toml");
    let dependency = format!("{name} = {{ version = \"={version}\", default-features = false }}\n");
    let package = "[package]\nname = \"probe\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n";
    fs::create_dir_all(probe.join("src")).with_context(|| format!("cannot create {}", probe.display()))?;
    fs::write(probe.join("src/lib.rs"), "").with_context(|| format!("cannot write in {}", probe.display()))?;
    fs::write(&manifest, package.to_owned() + &dependency)
        .with_context(|| format!("cannot write {}", manifest.display()))?;
    let mut metadata = Command::new("cargo");
    metadata.args(["metadata", "--format-version", "1", "--manifest-path"]).arg(&manifest);
    let metadata = shell::capture(&mut metadata).with_context(|| format!("cargo cannot fetch {name} {version}"))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    let found = packages.iter().find(|package| package["name"] == name && package["version"] == version);
    let path = found.and_then(|package| package["manifest_path"].as_str()).map(Path::new).and_then(Path::parent);
    path.map(Path::to_owned).with_context(|| format!("cargo does not say where {name} {version} lies"))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    Ok(())
}

/// What compiles Rust to WebAssembly on this machine.
enum ToolChain {
    /// rustup's prebuilt standard library.
    Rustup,
    /// The standard library's source, and wasi-libc, out of Debian's packages.
    Debian { library: PathBuf, libc: PathBuf },
}

impl ToolChain {
    fn find(cache: &Path) -> Result<ToolChain> {
        let is_installed = || {
            let sysroot = shell::capture(Command::new("rustc").args(["--print", "sysroot"]));
            sysroot.is_some_and(|root| Path::new(root.trim()).join("lib/rustlib").join(TARGET).join("lib").is_dir())
        };
        if is_installed() {
            return Ok(ToolChain::Rustup);
        }
        step(&format!("fetching the {TARGET} target"));
        if shell::run(Command::new("rustup").args(["target", "add", TARGET])).is_ok() && is_installed() {
            return Ok(ToolChain::Rustup);
        }
        step("rustup has no such target here: taking the library's source and wasi-libc from Debian's packages");
        ToolChain::from_debian(cache)
    }

    /// Downloads and unpacks the packages below `cache`, with lists of their own: the system's apt stays as it is.
    fn from_debian(cache: &Path) -> Result<ToolChain> {
        let version = shell::capture(Command::new("rustc").arg("--version")).context("rustc is not installed")?;
        let version = version.split_whitespace().nth(1).context("rustc shows no version")?.to_owned();
        let prefix = cache.join("prefix");
        let library = prefix.join(format!("usr/src/rustc-{version}/library"));
        let libc = prefix.join("usr/lib").join(TARGET);
        if !library.is_dir() || !libc.join("libc.a").is_file() {
            let archive = Archive::new(&cache.join("apt"), DEBIAN_SUITE)?;
            archive.update()?;
            let source = archive
                .newest("rust-src", &format!("{version}+"))
                .with_context(|| format!("`rustup target add {TARGET}` makes this unnecessary"))?;
            archive.unpack(&[format!("rust-src={source}"), "wasi-libc".into()], &prefix)?;
            ensure!(library.is_dir(), "rust-src {source} does not hold {}", library.display());
            ensure!(libc.join("libc.a").is_file(), "wasi-libc does not hold {}", libc.join("libc.a").display());
        }
        Ok(ToolChain::Debian { library, libc })
    }

    /// Flags of the target's compilation. Paths of this machine are kept out of the module.
    fn rust_flags(&self, guest: &Path) -> Result<String> {
        let cargo_home = match env::var_os("CARGO_HOME") {
            Some(home) => PathBuf::from(home),
            None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
        };
        let mut remapped = vec![(cargo_home.join("registry/src"), "/crates"), (guest.to_owned(), "/guest")];
        let mut flags = "-C target-feature=+simd128,+bulk-memory".to_owned();
        if let ToolChain::Debian { library, libc } = self {
            remapped.push((library.parent().unwrap_or(library).to_owned(), "/rust"));
            flags += &format!(" -L native={}", libc.display());
        }
        for (path, shown) in remapped {
            flags += &format!(" --remap-path-prefix={}={shown}", path.display());
        }
        Ok(flags)
    }
}
