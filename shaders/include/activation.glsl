// Gated activations of a feed-forward layer.
const uint SWIGLU = 0, SWIGLU_OAI = 1;

// SWIGLU: silu(gate) · up (arXiv 2002.05202). SWIGLU_OAI: gpt-oss's clamped variant (its model card).
float activate(uint kind, float gate, float up) {
    if (kind == SWIGLU) return gate / (1.0 + exp(-gate)) * up;
    gate = min(gate, 7.0);
    return gate / (1.0 + exp(-1.702 * gate)) * (clamp(up, -7.0, 7.0) + 1.0);
}
