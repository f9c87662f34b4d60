//! What kinds of instructions a kernel's code consists of, counted from its listing: that of Mesa's compiler, or a
//! disassembly by LLVM. An instruction stands on a line of its own, indented, behind what it defines where that is
//! named (` v1: %3:v[1] = v_add_f32 …`); two that are issued together (`v_dual_…`) are one.

use serde::{Deserialize, Serialize};

/// Instructions of a kernel's code by the unit that they go to. They are of the code, not of a run of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstructionMix {
    /// Vector arithmetic, products of bytes and of matrices among it.
    pub valu: u64,
    /// Scalar arithmetic.
    pub salu: u64,
    /// Loads and stores of memory by lanes.
    pub vmem: u64,
    /// Reads and writes of shared memory.
    pub lds: u64,
    /// Loads of memory for all lanes at once.
    pub smem: u64,
    /// Waits for what is under way.
    pub waits: u64,
    /// Jumps.
    pub branches: u64,
    /// Barriers, messages, hints for the sequencer, the end.
    pub other: u64,
}

/// What stands in the listing and is not counted: the assembler's hints for the instruction cache, put there after the
/// driver has counted.
const NOT_COUNTED: &str = "s_inst_prefetch";
/// Beginnings of names, looked at in this order.
const BRANCHES: [&str; 5] = ["s_branch", "s_cbranch", "s_setpc", "s_swappc", "s_call"];
const SCALAR_MEMORY: [&str; 3] = ["s_load", "s_buffer_load", "s_dcache"];
const OTHER: [&str; 8] =
    ["s_delay_alu", "s_clause", "s_nop", "s_sleep", "s_barrier", "s_sendmsg", "s_setprio", "s_endpgm"];
const VECTOR_MEMORY: [&str; 6] = ["global_", "buffer_", "flat_", "scratch_", "image_", "tbuffer_"];

impl InstructionMix {
    /// Counts a listing's instructions; `None` where it has none.
    pub(super) fn of(code: &str) -> Option<InstructionMix> {
        let mut mix = InstructionMix::default();
        for name in code.lines().filter_map(name).filter(|name| !name.starts_with(NOT_COUNTED)) {
            *mix.part(name) += 1;
        }
        (mix.total() > 0).then_some(mix)
    }

    /// All parts together.
    pub fn total(&self) -> u64 {
        self.parts().into_iter().sum()
    }

    /// The parts, in the order of their declaration.
    pub fn parts(&self) -> [u64; 8] {
        let InstructionMix { valu, salu, vmem, lds, smem, waits, branches, other } = *self;
        [valu, salu, vmem, lds, smem, waits, branches, other]
    }

    /// The part that an instruction of this name belongs to.
    fn part(&mut self, name: &str) -> &mut u64 {
        let begins = |all: &[&str]| all.iter().any(|start| name.starts_with(start));
        match name {
            _ if name.starts_with("v_") => &mut self.valu,
            _ if name.starts_with("ds_") => &mut self.lds,
            _ if begins(&VECTOR_MEMORY) => &mut self.vmem,
            _ if name.starts_with("s_wait") => &mut self.waits,
            _ if begins(&BRANCHES) => &mut self.branches,
            _ if begins(&SCALAR_MEMORY) => &mut self.smem,
            _ if begins(&OTHER) => &mut self.other,
            _ if name.starts_with("s_") => &mut self.salu,
            _ => &mut self.other,
        }
    }
}

/// Name of the instruction on a line, if there is one.
fn name(line: &str) -> Option<&str> {
    let text = line.strip_prefix([' ', '\t'])?;
    text.split_once(" = ").map_or(text, |(_, instruction)| instruction).split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_counted_by_the_unit_that_they_go_to() {
        let code = "ACO shader stage: SW (CS), HW (COMPUTE_SHADER)\nBB0\n/* kind: uniform */\n\ts_clause imm:1\n\
                    \t s1: %9:s[1] = s_load_dword %8:s[2-3], 0x50\n\
                    \t s1: %4:s[16],  s1: %396:scc = s_add_u32 %3:s[16], %386:s[15]\n\
                    \t v1: %0:v[3] = v_dual_mov_b32 0 :: v1: %0:v[2] = v_dual_mov_b32 0\n\ts_inst_prefetch 0x3\nBB1\n\
                    \t v4: %1:v[4-7] = global_load_dwordx4 %2:v[8-9]\n\ts_waitcnt vmcnt(0)\n\ts_waitcnt_depctr 1\n\
                    \t v1: %2:v[1] = v_dot4_i32_iu8 %1:v[4], %1:v[5], %1:v[6]\n\tds_write_b32 %3:v[2], %2:v[1]\n\
                    \ts_barrier\n\t v1: %5:v[2] = ds_read_b32 %3:v[2]\n\ts_cbranch_scc0 block:BB1\nBB2\n\
                    \tglobal_store_dword %6:v[8-9], %5:v[2] storage:buffer\n\ts_branch block:BB3\nBB3\n\ts_endpgm\n";
        let mix = InstructionMix::of(code).expect("a listing");
        let want = InstructionMix { valu: 2, salu: 1, vmem: 2, lds: 2, smem: 1, waits: 2, branches: 2, other: 3 };
        assert_eq!(mix, want);
        assert_eq!(mix.total(), 15);
    }

    #[test]
    fn a_disassembly_by_llvm_is_counted_too() {
        let code = "BB0:\n\ts_load_b64 s[4:5], s[2:3], 0x0    ; F4040101 F8000000\n\tv_lshlrev_b32_e32 v0, 2, v0\n\
                    \ts_waitcnt lgkmcnt(0)\n\tglobal_load_b32 v1, v0, s[4:5]\n\ts_endpgm\n";
        let mix = InstructionMix::of(code).expect("a listing");
        assert_eq!(mix.parts(), [1, 0, 1, 0, 1, 1, 0, 1]);
    }

    #[test]
    fn what_is_no_listing_has_no_mix() {
        assert_eq!(InstructionMix::of(""), None);
        assert_eq!(InstructionMix::of("BB0\n/* kind: uniform */\n"), None);
    }
}
