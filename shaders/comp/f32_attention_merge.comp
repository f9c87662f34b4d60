#version 460
#extension GL_GOOGLE_include_directive : require
// out[t, h] = Σᵢ exp(mᵢ − m) · accᵢ / (Σᵢ exp(mᵢ − m) · sumᵢ + exp(sink[h] − m)), m the largest of all mᵢ and the sink: the
// end of an attention whose positions were split among workgroups (f32_anykv_attention.comp).
// One workgroup per (head, token); its invocations share out the head's vec4s.
// Bound by bytes: the partial results read once.
// CPU twin: that of the attention.
// Specialization constants: 0 WG_SIZE, 1 HEAD_DIM4. Any subgroup size.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 32;
layout(constant_id = 1) const uint HEAD_DIM4 = 16;

layout(push_constant) uniform Push {
    ReadF32x4 partials; // [n_tokens, n_head, n_splits, 1 + HEAD_DIM4]
    ReadF32 sinks;      // [n_head], read if has_sinks
    WriteF32x4 dst;     // [n_tokens, stride4 * 4]
    uint n_splits;
    uint has_sinks;
    uint stride4;
} push;

void main() {
    uint h = gl_WorkGroupID.x, t = gl_WorkGroupID.y;
    uint from = (t * gl_NumWorkGroups.x + h) * push.n_splits * (1 + HEAD_DIM4);
    float top = push.partials.v[from].x;
    for (uint i = 1; i < push.n_splits; i++) top = max(top, push.partials.v[from + i * (1 + HEAD_DIM4)].x);
    if (push.has_sinks != 0) top = max(top, push.sinks.v[h]);
    float total = push.has_sinks != 0 ? exp(push.sinks.v[h] - top) : 0.0;
    for (uint i = 0; i < push.n_splits; i++) {
        vec4 part = push.partials.v[from + i * (1 + HEAD_DIM4)];
        total += exp(part.x - top) * part.y;
    }
    for (uint d = gl_LocalInvocationID.x; d < HEAD_DIM4; d += WG_SIZE) {
        vec4 sum = vec4(0.0);
        for (uint i = 0; i < push.n_splits; i++) {
            uint at = from + i * (1 + HEAD_DIM4);
            sum += exp(push.partials.v[at].x - top) * push.partials.v[at + 1 + d];
        }
        push.dst.v[t * push.stride4 + h * HEAD_DIM4 + d] = sum / total;
    }
}
