//! GLSL to SPIR-V 1.6 for Vulkan 1.3, by glslang. The build script compiles the manifest with it; with the feature
//! `compiler` the library compiles edited shaders at run time, in the same way. It calls glslang's C interface
//! (`glslang-sys`) itself: the safe wrapper `glslang` would have the sandbox's own compiler built with other features.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;

use glslang_sys as sys;

/// Deepest chain of includes: a file that includes itself is an error and no endless loop.
const MAX_DEPTH: usize = 16;

/// One shader to be compiled.
pub struct Source<'a> {
    /// Name of its file, for messages.
    pub file: &'a str,
    /// What the file holds.
    pub text: &'a str,
    /// A definition that makes the variant.
    pub define: Option<&'a str>,
    /// The text of an included file.
    pub include: &'a dyn Fn(&str) -> Option<String>,
}

/// Compiles a compute shader.
///
/// # Errors
/// The compiler's messages, one a line, each beginning with file and line.
pub fn compile(source: &Source<'_>) -> Result<Vec<u32>, String> {
    static STARTED: OnceLock<bool> = OnceLock::new();
    // SAFETY: called once per process, before any other function of the compiler.
    if !STARTED.get_or_init(|| unsafe { sys::glslang_initialize_process() } != 0) {
        return Err("the GLSL compiler does not start".to_owned());
    }
    let zero_byte = |_| format!("{}: a zero byte in a text", source.file);
    let code = CString::new(source.text).map_err(zero_byte)?;
    let preamble = source.define.map(|d| format!("#define {d} 1\n")).unwrap_or_default();
    let preamble = CString::new(preamble).map_err(zero_byte)?;
    let resource = limits();
    let mut includes = Includes(source.include);
    let input = sys::glslang_input_t {
        language: sys::glslang_source_t::GLSL,
        stage: sys::glslang_stage_t::Compute,
        client: sys::glslang_client_t::Vulkan,
        client_version: sys::glslang_target_client_version_t::Vulkan1_3,
        target_language: sys::glslang_target_language_t::SPIRV,
        target_language_version: sys::glslang_target_language_version_t::SPIRV1_6,
        code: code.as_ptr(),
        default_version: 100,
        default_profile: sys::glslang_profile_t::None,
        force_default_version_and_profile: 0,
        forward_compatible: 0,
        messages: sys::glslang_messages_t::DEFAULT,
        resource: &raw const resource,
        callbacks: sys::glsl_include_callbacks_t {
            include_system: Some(include),
            include_local: Some(include),
            free_include_result: Some(free_include),
        },
        callbacks_ctx: (&raw mut includes).cast(),
    };
    // SAFETY: `input` and all that it points to outlive shader and program; neither is used by another thread.
    unsafe {
        let shader = sys::glslang_shader_create(&raw const input);
        let program = sys::glslang_program_create();
        let result = match shader.is_null() || program.is_null() {
            true => Err(format!("{}: the GLSL compiler has no memory", source.file)),
            false => translate(source.file, &input, &preamble, shader, program),
        };
        // The program points to the shader.
        if !program.is_null() {
            sys::glslang_program_delete(program);
        }
        if !shader.is_null() {
            sys::glslang_shader_delete(shader);
        }
        result
    }
}

/// # Safety
/// All pointers are live; `input` is the one that `shader` was made with.
unsafe fn translate(
    file: &str,
    input: &sys::glslang_input_t,
    preamble: &CStr,
    shader: *mut sys::glslang_shader_t,
    program: *mut sys::glslang_program_t,
) -> Result<Vec<u32>, String> {
    // SAFETY: as promised by the caller; the logs are texts that live as long as what they are about; the buffer has
    // the size that the compiler asks for.
    unsafe {
        sys::glslang_shader_set_preamble(shader, preamble.as_ptr());
        if sys::glslang_shader_preprocess(shader, input) == 0 || sys::glslang_shader_parse(shader, input) == 0 {
            return Err(messages(file, sys::glslang_shader_get_info_log(shader)));
        }
        sys::glslang_program_add_shader(program, shader);
        let rules = sys::glslang_messages_t::VULKAN_RULES | sys::glslang_messages_t::SPV_RULES;
        if sys::glslang_program_link(program, rules.0) == 0 {
            return Err(messages(file, sys::glslang_program_get_info_log(program)));
        }
        sys::glslang_program_SPIRV_generate(program, sys::glslang_stage_t::Compute);
        let mut words = vec![0; sys::glslang_program_SPIRV_get_size(program)];
        sys::glslang_program_SPIRV_get(program, words.as_mut_ptr());
        Ok(words)
    }
}

/// What the language's built-in constants say of compute shaders; other stages have nothing.
fn limits() -> sys::glslang_resource_t {
    // SAFETY: the struct holds integers and booleans, for which zero is a value.
    let none: sys::glslang_resource_t = unsafe { std::mem::zeroed() };
    sys::glslang_resource_t {
        max_compute_work_group_count_x: 65_535,
        max_compute_work_group_count_y: 65_535,
        max_compute_work_group_count_z: 65_535,
        max_compute_work_group_size_x: 1024,
        max_compute_work_group_size_y: 1024,
        max_compute_work_group_size_z: 64,
        max_compute_uniform_components: 1024,
        max_compute_texture_image_units: 16,
        max_compute_image_uniforms: 8,
        limits: sys::glslang_limits_t::default(),
        ..none
    }
}

/// The lines of the compiler's log that say something, `FILE:LINE: what`. The compiler calls the main file `0`.
///
/// # Safety
/// `log` is a text or null.
unsafe fn messages(file: &str, log: *const c_char) -> String {
    if log.is_null() {
        return format!("{file}: the GLSL compiler says nothing");
    }
    // SAFETY: as promised by the caller.
    let log = unsafe { CStr::from_ptr(log) }.to_string_lossy();
    let lines: Vec<String> = log.lines().filter_map(|line| message(file, line)).collect();
    if lines.is_empty() { format!("{file}: {}", log.trim()) } else { lines.join("\n") }
}

fn message(file: &str, line: &str) -> Option<String> {
    let (is_error, rest) = match (line.strip_prefix("ERROR: "), line.strip_prefix("WARNING: ")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ => return None,
    };
    // The count at the end says nothing new.
    if rest.contains("compilation errors") {
        return None;
    }
    let place = match rest.strip_prefix("0:") {
        Some(place) => format!("{file}:{place}"),
        None => rest.to_owned(),
    };
    Some(if is_error { place } else { format!("{place} (warning)") })
}

/// What the callbacks get.
struct Includes<'a>(&'a dyn Fn(&str) -> Option<String>);

/// Called by the compiler for `#include`; a null result is its error.
unsafe extern "C" fn include(
    context: *mut c_void,
    name: *const c_char,
    _: *const c_char,
    depth: usize,
) -> *mut sys::glsl_include_result_t {
    if depth > MAX_DEPTH {
        return ptr::null_mut();
    }
    // SAFETY: the compiler gives back the context of `compile`, which is running, and a text.
    let (includes, name) = unsafe { (&*context.cast::<Includes<'_>>(), CStr::from_ptr(name)) };
    let data = name.to_str().ok().and_then(includes.0).and_then(|text| CString::new(text).ok());
    let Some(data) = data else { return ptr::null_mut() };
    let header_length = data.as_bytes().len();
    let (header_name, header_data) = (name.to_owned().into_raw(), data.into_raw());
    Box::into_raw(Box::new(sys::glsl_include_result_t { header_name, header_data, header_length }))
}

/// Called by the compiler when it has read what `include` gave.
unsafe extern "C" fn free_include(_: *mut c_void, result: *mut sys::glsl_include_result_t) -> c_int {
    if !result.is_null() {
        // SAFETY: made by `include` from a box and two texts, and given back once.
        unsafe {
            let result = Box::from_raw(result);
            drop(CString::from_raw(result.header_name.cast_mut()));
            drop(CString::from_raw(result.header_data.cast_mut()));
        }
    }
    0
}
