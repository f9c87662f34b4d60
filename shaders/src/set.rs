//! The kernels that a program runs: the built-in ones, or those of a folder of edited sources on top of them. A file in
//! the folder (also in its `comp/` or `include/`) stands for the built-in file of the same name; kernels that use none
//! of them stay as they were built. Edited kernels are compiled on first use (feature `compiler`).
//!
//! Refused: files that no kernel could use, shaders that don't compile, and push constants other than the built-in
//! kernel's, which the host fills in by their places.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

#[cfg(feature = "compiler")]
use crate::reflect::{Interface, Member, interface};
use crate::{HASH, Kernel, sources, spirv};

/// Largest source file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Why an edited shader can't be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are named and the messages say what they are")]
pub enum ShaderError {
    /// The folder or a file in it can't be read.
    #[error("{}: {problem}", .path.display())]
    Read { path: PathBuf, problem: String },
    /// There is nothing in it that could stand for a built-in file.
    #[error("{}: there are no shaders in this folder: no *.comp and no *.glsl", .path.display())]
    Empty { path: PathBuf },
    /// A kernel that doesn't exist.
    #[error("{}: no built-in kernel has a source of this name; there are {}", .path.display(), known.join(", "))]
    Unknown { path: PathBuf, known: Vec<&'static str> },
    /// The same file twice.
    #[error("{} and {} are both {name}", .first.display(), .second.display())]
    Twice { name: String, first: PathBuf, second: PathBuf },
    /// A shader that doesn't compile.
    #[error("{kernel} does not compile:\n{messages}")]
    Compile { kernel: String, messages: String },
    /// Other push constants.
    #[error(
        "{kernel} has other push constants than the built-in kernel, which the program fills in: \
         it has {found}, should have {expected}"
    )]
    Interface { kernel: String, found: String, expected: String },
    /// A program without the compiler.
    #[error("this program was built without the GLSL compiler (cargo feature `compiler`): it can't compile shaders")]
    NoCompiler,
}

/// Compiled kernels.
#[derive(Debug, Default)]
pub struct ShaderSet {
    /// Text by name.
    files: BTreeMap<String, String>,
    /// Files that were edited since they were written out.
    names: Vec<String>,
    made: BTreeMap<usize, OnceLock<Result<Vec<u32>, ShaderError>>>,
    hash: Option<u64>,
}

impl ShaderSet {
    /// The kernels as they were built.
    pub fn built_in() -> ShaderSet {
        ShaderSet::default()
    }

    /// The built-in kernels with the files of `folder` in place of those of the same names. Files that are the same as
    /// the built-in ones change nothing.
    ///
    /// # Errors
    /// The folder can't be read, holds no shaders, or one that belongs to no kernel.
    pub fn with_folder(folder: &Path) -> Result<ShaderSet, ShaderError> {
        if cfg!(not(feature = "compiler")) {
            return Err(ShaderError::NoCompiler);
        }
        let found = find(folder)?;
        if found.is_empty() {
            return Err(ShaderError::Empty { path: folder.to_owned() });
        }
        let mut files = BTreeMap::new();
        for (name, path) in found {
            let built_in = sources().iter().find(|s| s.name == name);
            if built_in.is_none() && name.ends_with(".comp") {
                let known = sources().iter().filter(|s| s.folder == "comp").map(|s| s.name).collect();
                return Err(ShaderError::Unknown { path, known });
            }
            let text = read(&path)?;
            if built_in.is_none_or(|s| s.text != text) {
                files.insert(name, text);
            }
        }
        let mut set = ShaderSet { names: files.keys().cloned().collect(), files, ..ShaderSet::default() };
        if !set.files.is_empty() {
            set.hash =
                Some(set.files.iter().fold(HASH, |h, (name, text)| fnv(fnv(h, name.as_bytes()), text.as_bytes())));
        }
        let edited = Kernel::all().filter(|k| set.uses_edited(k.source(), 0)).map(|k| (k.index(), OnceLock::new()));
        set.made = edited.collect();
        Ok(set)
    }

    /// Files that differ from the built-in ones.
    pub fn edited_files(&self) -> &[String] {
        &self.names
    }

    /// Whether `kernel` is made from edited files.
    pub fn is_edited(&self, kernel: Kernel) -> bool {
        self.made.contains_key(&kernel.index())
    }

    /// A key for caches of what drivers make of the set; `None` for the built-in kernels, whose key is [`HASH`].
    pub fn edited_hash(&self) -> Option<u64> {
        self.hash
    }

    /// SPIR-V of `kernel`; an edited one is compiled when it is first asked for.
    ///
    /// # Errors
    /// It doesn't compile, or has other push constants.
    pub fn spirv(&self, kernel: Kernel) -> Result<&[u32], ShaderError> {
        match self.made.get(&kernel.index()) {
            None => Ok(spirv(kernel)),
            Some(made) => match made.get_or_init(|| self.compile(kernel)) {
                Ok(words) => Ok(words),
                Err(error) => Err(error.clone()),
            },
        }
    }

    /// The text of a file: the edited one, or the built-in one.
    fn text(&self, name: &str) -> Option<&str> {
        let built_in = || sources().iter().find(|s| s.name == name).map(|s| s.text);
        self.files.get(name).map(String::as_str).or_else(built_in)
    }

    /// Whether a file, or one that it includes, was edited.
    fn uses_edited(&self, name: &str, depth: usize) -> bool {
        // Deeper chains don't compile.
        if depth > 16 || self.files.contains_key(name) {
            return true;
        }
        let included = self.text(name).unwrap_or_default().lines().filter_map(included_name);
        included.into_iter().any(|name| self.uses_edited(name, depth + 1))
    }

    #[cfg(feature = "compiler")]
    fn compile(&self, kernel: Kernel) -> Result<Vec<u32>, ShaderError> {
        use crate::compiler::{Source, compile};
        let (file, define) = (kernel.source(), kernel.definition());
        let include = |name: &str| self.text(name).map(str::to_owned);
        let text = self.text(file).unwrap_or_default();
        let source = Source { file, text, define: define.as_deref(), include: &include };
        let failed = |messages| ShaderError::Compile { kernel: kernel.name(), messages };
        let words = compile(&source).map_err(failed)?;
        check_interface(kernel, &interface(&words))?;
        Ok(words)
    }

    #[cfg(not(feature = "compiler"))]
    fn compile(&self, _: Kernel) -> Result<Vec<u32>, ShaderError> {
        Err(ShaderError::NoCompiler)
    }
}

/// Writes the built-in sources to `folder`, as `comp/` and `include/`: what an edit starts from. Files that are there
/// are kept. Gives the number of files written and kept.
///
/// # Errors
/// A file or folder can't be written.
pub fn write_sources(folder: &Path) -> std::io::Result<(usize, usize)> {
    let (mut written, mut kept) = (0, 0);
    for source in sources() {
        let dir = folder.join(source.folder);
        fs::create_dir_all(&dir)?;
        let path = dir.join(source.name);
        if path.exists() {
            kept += 1;
        } else {
            fs::write(path, source.text)?;
            written += 1;
        }
    }
    Ok((written, kept))
}

/// Name in an `#include "…"` line.
fn included_name(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("#include")?.split('"').nth(1)
}

/// Shaders in the folder and in its `comp` and `include`: name and path.
fn find(folder: &Path) -> Result<BTreeMap<String, PathBuf>, ShaderError> {
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    for dir in [folder.to_owned(), folder.join("comp"), folder.join("include")] {
        if dir != folder && !dir.is_dir() {
            continue;
        }
        let failed = |e: std::io::Error| ShaderError::Read { path: dir.clone(), problem: e.to_string() };
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()).map(str::to_owned) else { continue };
            if !(name.ends_with(".comp") || name.ends_with(".glsl")) || name.starts_with('.') {
                continue;
            }
            if let Some(first) = found.insert(name.clone(), path.clone()) {
                return Err(ShaderError::Twice { name, first, second: path });
            }
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String, ShaderError> {
    let failed = |problem: String| ShaderError::Read { path: path.to_owned(), problem };
    let size = fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(failed(format!("{size} bytes, at most {MAX_BYTES} are read")));
    }
    let text = fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    match text.contains('\0') {
        true => Err(failed("a zero byte in a text".to_owned())),
        false => Ok(text),
    }
}

/// Refuses push constants other than the built-in kernel's.
#[cfg(feature = "compiler")]
fn check_interface(kernel: Kernel, found: &Interface) -> Result<(), ShaderError> {
    let expected = interface(spirv(kernel));
    if found.members == expected.members {
        return Ok(());
    }
    let text = |members: &[Member]| {
        let all: Vec<String> = members.iter().map(|m| format!("{} at {} ({:?})", m.name, m.offset, m.kind)).collect();
        all.join(", ")
    };
    let (found, expected) = (text(&found.members), text(&expected.members));
    Err(ShaderError::Interface { kernel: kernel.name(), found, expected })
}

/// FNV-1a over a length and bytes, going on from `hash`.
fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    let length = (bytes.len() as u64).to_le_bytes();
    length.iter().chain(bytes).fold(hash, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(all(test, feature = "compiler"))]
mod tests {
    use super::*;
    use crate::WeightType;

    fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        }
        dir
    }

    fn built_in(name: &str) -> String {
        sources().iter().find(|s| s.name == name).expect("a source").text.to_owned()
    }

    #[test]
    fn written_sources_compile_to_the_built_in_kernels_and_change_nothing() {
        let dir = folder(&[]);
        let (written, kept) = write_sources(dir.path()).expect("written");
        assert_eq!((written, kept), (sources().len(), 0));
        assert_eq!(write_sources(dir.path()).expect("kept"), (0, written));
        let set = ShaderSet::with_folder(dir.path()).expect("a set");
        assert_eq!((set.edited_files().len(), set.edited_hash()), (0, None));
        assert!(Kernel::all().all(|k| !set.is_edited(k)));
        // A comment makes another file of the same code.
        let path = dir.path().join("comp/f32_rope.comp");
        fs::write(&path, built_in("f32_rope.comp") + "// edited\n").expect("written");
        let set = ShaderSet::with_folder(dir.path()).expect("a set");
        assert_eq!(set.edited_files(), ["f32_rope.comp"]);
        assert!(set.is_edited(Kernel::Rope) && set.edited_hash().is_some());
        assert_eq!(set.spirv(Kernel::Rope).expect("compiles"), spirv(Kernel::Rope));
    }

    #[test]
    fn an_edited_include_changes_the_kernels_that_use_it_and_no_others() {
        let text = built_in("activation.glsl");
        let dir = folder(&[("activation.glsl", text.replace("exp(-", "exp(-0.5 * "))]);
        let set = ShaderSet::with_folder(dir.path()).expect("a set");
        assert_ne!(set.spirv(Kernel::Swiglu).expect("compiles"), spirv(Kernel::Swiglu));
        let gated = Kernel::GatedMatvec(WeightType::Q8_0);
        assert!(set.is_edited(gated) && !set.is_edited(Kernel::Matvec(WeightType::Q8_0)));
        assert_eq!(set.spirv(Kernel::Rope).expect("built in"), spirv(Kernel::Rope));
    }

    #[test]
    fn sets_have_hashes_of_their_own() {
        let hash = |text: &str| {
            let dir = folder(&[("f32_rope.comp", built_in("f32_rope.comp") + text)]);
            ShaderSet::with_folder(dir.path()).expect("a set").edited_hash().expect("edited")
        };
        assert_eq!(hash("// a"), hash("// a"));
        assert_ne!(hash("// a"), hash("// b"));
    }

    #[test]
    fn errors_of_the_compiler_name_file_and_line() {
        let broken = built_in("activation.glsl") + "float broken = ;\n";
        let line = broken.lines().count();
        let dir =
            folder(&[("include/activation.glsl", broken), ("comp/f32_rope.comp", "#version 460\nnonsense\n".into())]);
        let set = ShaderSet::with_folder(dir.path()).expect("a set");
        let message = |kernel| set.spirv(kernel).expect_err("does not compile").to_string();
        let swiglu = message(Kernel::Swiglu);
        assert!(swiglu.contains(&format!("activation.glsl:{line}:")) && swiglu.contains("f32_swiglu"), "{swiglu}");
        let rope = message(Kernel::Rope);
        assert!(rope.contains("f32_rope.comp:") && !rope.contains("ERROR"), "{rope}");
    }

    #[test]
    fn other_push_constants_are_refused() {
        let text = built_in("f32_swiglu.comp");
        let dir = folder(&[("f32_swiglu.comp", text.replace("uint n4;", "uint n5; uint n4;"))]);
        let set = ShaderSet::with_folder(dir.path()).expect("a set");
        let error = set.spirv(Kernel::Swiglu).expect_err("another interface");
        assert!(matches!(error, ShaderError::Interface { .. }), "{error}");
    }

    #[test]
    fn folders_that_hold_nothing_or_something_unknown_are_refused() {
        let refused = |dir: &Path| ShaderSet::with_folder(dir).expect_err("refused");
        assert!(matches!(refused(Path::new("/nonexistent")), ShaderError::Read { .. }));
        assert!(matches!(refused(folder(&[("notes.txt", String::new())]).path()), ShaderError::Empty { .. }));
        let error = refused(folder(&[("f32_ropes.comp", String::new())]).path());
        assert!(matches!(&error, ShaderError::Unknown { known, .. } if known.contains(&"f32_rope.comp")), "{error}");
        let twice = [("f32_rope.comp", String::new()), ("comp/f32_rope.comp", String::new())];
        assert!(matches!(refused(folder(&twice).path()), ShaderError::Twice { .. }));
        let zero = refused(folder(&[("f32_rope.comp", "a\0b".to_owned())]).path());
        assert!(matches!(zero, ShaderError::Read { .. }));
        let dir = folder(&[("loop.glsl", "#include \"loop.glsl\"\n".into()), ("f32_rope.comp", "#version 460\n#extension GL_GOOGLE_include_directive : require\n#include \"loop.glsl\"\nvoid main() {}\n".into())]);
        let set = ShaderSet::with_folder(dir.path()).expect("a set");
        assert!(matches!(set.spirv(Kernel::Rope), Err(ShaderError::Compile { .. })));
    }
}
