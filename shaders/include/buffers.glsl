// Typed views of device addresses. Every kernel gets its buffers as addresses in its push constants: one weight can
// be larger than the largest storage-buffer binding that some devices allow (128 MiB on lavapipe), and no
// descriptor has to be written. `Read…` views are never written through; the host's hazard tracking relies on it
// (its test reads the qualifiers back from the SPIR-V).
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_control_flow_attributes : require

layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer ReadU32x4 { uvec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) readonly buffer ReadU32 { uint v[]; };
layout(buffer_reference, std430, buffer_reference_align = 2) readonly buffer ReadF16 { float16_t v[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer ReadU32x2 { uvec2 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) readonly buffer ReadF32 { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer ReadF32x4 { vec4 v[]; };

layout(buffer_reference, std430, buffer_reference_align = 16) buffer WriteU32x4 { uvec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer WriteU32x2 { uvec2 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer WriteU32 { uint v[]; };
layout(buffer_reference, std430, buffer_reference_align = 2) buffer WriteF16 { float16_t v[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer WriteF16x4 { f16vec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer WriteF32 { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer WriteF32x4 { vec4 v[]; };
