//! Reads the interface of a kernel back from its SPIR-V: push constants with their offsets and whether a buffer is
//! only read, specialization constants, bindings, required capabilities. For the tests that compare it with the
//! host's structs, and for tools that list kernels. Accepts only modules of this crate; anything else may give
//! nonsense, never a read out of bounds of `words`.

use std::collections::{BTreeMap, BTreeSet};

// Opcodes and enumerants of the SPIR-V specification that matter here.
const OP_MEMBER_NAME: u16 = 6;
const OP_CAPABILITY: u16 = 17;
const OP_TYPE_STRUCT: u16 = 30;
const OP_TYPE_POINTER: u16 = 32;
const OP_VARIABLE: u16 = 59;
const OP_DECORATE: u16 = 71;
const OP_MEMBER_DECORATE: u16 = 72;
const DECORATION_SPEC_ID: u32 = 1;
const DECORATION_NON_WRITABLE: u32 = 24;
const DECORATION_BINDING: u32 = 33;
const DECORATION_OFFSET: u32 = 35;
const STORAGE_PUSH_CONSTANT: u32 = 9;
const STORAGE_PHYSICAL_BUFFER: u32 = 5349;

/// What a kernel needs from its caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Push constants in order of their offsets.
    pub members: Vec<Member>,
    /// Ids of the specialization constants.
    pub spec_ids: BTreeSet<u32>,
    /// Descriptor bindings.
    pub bindings: BTreeSet<u32>,
    /// Capabilities, as numbered in the SPIR-V specification.
    pub capabilities: BTreeSet<u32>,
}

/// One push constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name in the shader.
    pub name: String,
    /// Byte offset in the block.
    pub offset: u32,
    /// Address of a buffer, or a 4-byte value.
    pub kind: MemberKind,
}

/// What a push constant holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// Four bytes: `uint` or `float`.
    Scalar,
    /// Eight bytes: address of a buffer that is only read.
    ReadAddress,
    /// Eight bytes: address of a buffer that may be written.
    WriteAddress,
}

impl Interface {
    /// Bytes of the push-constant block, without padding at its end.
    pub fn push_bytes(&self) -> u32 {
        self.members.last().map_or(0, |m| m.offset + if m.kind == MemberKind::Scalar { 4 } else { 8 })
    }
}

/// Reads the interface of a module.
pub fn interface(words: &[u32]) -> Interface {
    let mut module = Module::default();
    let mut rest = words.get(5..).unwrap_or(&[]);
    while let Some(&first) = rest.first() {
        let n_words = ((first >> 16) as usize).clamp(1, rest.len());
        let (instruction, tail) = rest.split_at(n_words);
        module.read((first & 0xFFFF) as u16, &instruction[1..]);
        rest = tail;
    }
    module
        .interface
        .members
        .extend(module.push_struct().into_iter().flat_map(|id| module.members_of(id)).collect::<Vec<_>>());
    module.interface.members.sort_by_key(|m| m.offset);
    module.interface
}

/// Names, types and decorations by id.
#[derive(Default)]
struct Module {
    interface: Interface,
    member_names: BTreeMap<(u32, u32), String>,
    offsets: BTreeMap<(u32, u32), u32>,
    non_writable: BTreeSet<u32>,
    structs: BTreeMap<u32, Vec<u32>>,
    pointers: BTreeMap<u32, (u32, u32)>,
    push_variable_type: Option<u32>,
}

impl Module {
    fn read(&mut self, op: u16, args: &[u32]) {
        match (op, args) {
            (OP_CAPABILITY, &[capability]) => {
                self.interface.capabilities.insert(capability);
            }
            (OP_MEMBER_NAME, &[id, member, ref name @ ..]) => {
                self.member_names.insert((id, member), text(name));
            }
            (OP_DECORATE, &[_, DECORATION_SPEC_ID, id]) => {
                self.interface.spec_ids.insert(id);
            }
            (OP_DECORATE, &[_, DECORATION_BINDING, binding]) => {
                self.interface.bindings.insert(binding);
            }
            (OP_MEMBER_DECORATE, &[id, member, DECORATION_OFFSET, offset]) => {
                self.offsets.insert((id, member), offset);
            }
            (OP_MEMBER_DECORATE, &[id, _, DECORATION_NON_WRITABLE]) => {
                self.non_writable.insert(id);
            }
            (OP_TYPE_STRUCT, &[id, ref members @ ..]) => {
                self.structs.insert(id, members.to_vec());
            }
            (OP_TYPE_POINTER, &[id, storage, pointee]) => {
                self.pointers.insert(id, (storage, pointee));
            }
            (OP_VARIABLE, &[ty, _, STORAGE_PUSH_CONSTANT, ..]) => self.push_variable_type = Some(ty),
            _ => {}
        }
    }

    fn push_struct(&self) -> Option<u32> {
        self.pointers.get(&self.push_variable_type?).map(|&(_, pointee)| pointee)
    }

    fn members_of(&self, id: u32) -> Vec<Member> {
        let types = self.structs.get(&id).map_or(&[][..], Vec::as_slice);
        (0..).zip(types).map(|(i, ty)| self.member(id, i, *ty)).collect()
    }

    fn member(&self, id: u32, i: u32, ty: u32) -> Member {
        let kind = match self.pointers.get(&ty) {
            Some(&(STORAGE_PHYSICAL_BUFFER, buffer)) if self.non_writable.contains(&buffer) => MemberKind::ReadAddress,
            Some(&(STORAGE_PHYSICAL_BUFFER, _)) => MemberKind::WriteAddress,
            _ => MemberKind::Scalar,
        };
        let name = self.member_names.get(&(id, i)).cloned().unwrap_or_default();
        Member { name, offset: self.offsets.get(&(id, i)).copied().unwrap_or_default(), kind }
    }
}

/// A literal string: UTF-8, four bytes to a word, ended by a zero.
fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).take_while(|&b| b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kernel, spirv};

    #[test]
    fn reads_the_push_constants_of_a_kernel() {
        let swiglu = interface(spirv(Kernel::Swiglu));
        let member = |name: &str, offset, kind| Member { name: name.into(), offset, kind };
        let expected = [
            member("gate", 0, MemberKind::WriteAddress),
            member("up", 8, MemberKind::ReadAddress),
            member("n4", 16, MemberKind::Scalar),
        ];
        assert_eq!(swiglu.members, expected);
        assert_eq!(swiglu.push_bytes(), 20);
        assert_eq!(swiglu.spec_ids, BTreeSet::from([0, 1]));
    }

    #[test]
    fn no_kernel_has_bindings_and_all_fit_the_guaranteed_push_constants() {
        for kernel in Kernel::all() {
            let interface = interface(spirv(kernel));
            assert_eq!(interface.bindings, BTreeSet::new(), "{}", kernel.name());
            assert!((4..=128).contains(&interface.push_bytes()), "{}: {interface:?}", kernel.name());
            assert!(interface.spec_ids.contains(&0), "{} has a workgroup size", kernel.name());
        }
    }

    #[test]
    fn cut_modules_are_read_without_panic() {
        let words = spirv(Kernel::Rope);
        for n in 0..words.len() {
            interface(&words[..n]);
        }
    }
}
