//! A reader of the kernel's BTF: just enough to find members of structures and enumerators.
//!
//! aya reads BTF too but keeps members to itself. Format: Documentation/bpf/btf.rst in the kernel's tree.

use std::collections::HashMap;
use std::path::Path;

/// Why BTF could not be read.
#[derive(Debug)]
pub(crate) enum BtfError {
    Io(std::io::Error),
    /// The file is not BTF, or is cut off; the text says where.
    Malformed(&'static str),
}

impl std::fmt::Display for BtfError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Malformed(what) => write!(f, "malformed BTF: {what}"),
        }
    }
}

impl std::error::Error for BtfError {}

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// The types of the running kernel.
pub(crate) struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where each type begins in `types`; id 0 is void.
    at: Vec<u32>,
    structs: HashMap<Vec<u8>, u32>,
    typedefs: HashMap<Vec<u8>, u32>,
}

impl Btf {
    /// Reads `vmlinux` BTF; 20 ms and 10 MB, so it is dropped after start.
    pub(crate) fn read(path: &Path) -> Result<Self, BtfError> {
        Self::parse(&std::fs::read(path).map_err(BtfError::Io)?)
    }

    fn parse(raw: &[u8]) -> Result<Self, BtfError> {
        let word = |at: usize| raw.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let header = |at| word(at).map(|n| n as usize).ok_or(BtfError::Malformed("header"));
        if header(0)? & 0xffff != 0xeb9f {
            return Err(BtfError::Malformed("magic"));
        }
        let base = header(4)?;
        let section = |from: usize, len: usize| {
            let from = base.checked_add(from)?;
            raw.get(from..from.checked_add(len)?).map(<[u8]>::to_vec)
        };
        let types = section(header(8)?, header(12)?).ok_or(BtfError::Malformed("types"))?;
        let strings = section(header(16)?, header(20)?).ok_or(BtfError::Malformed("strings"))?;

        let mut btf = Self { types, strings, at: vec![0], structs: HashMap::new(), typedefs: HashMap::new() };
        let mut at = 0;
        while at < btf.types.len() {
            let id = btf.at.len() as u32;
            btf.at.push(at as u32);
            let info = btf.word(at + 4).ok_or(BtfError::Malformed("type"))?;
            let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let name = btf.string(btf.word(at).unwrap_or(0)).to_vec();
            match kind {
                KIND_STRUCT | KIND_UNION if members > 0 => {
                    btf.structs.entry(name).or_insert(id);
                }
                KIND_TYPEDEF => {
                    btf.typedefs.entry(name).or_insert(id);
                }
                _ => {}
            }
            at += 12
                + match kind {
                    KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                    KIND_ARRAY => 12,
                    KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * members,
                    KIND_ENUM | KIND_FUNC_PROTO => 8 * members,
                    _ => 0,
                };
        }
        Ok(btf)
    }

    /// The byte offset of a member: `offset("task_struct", "sched_info.last_queued")`. Looks into anonymous members.
    pub(crate) fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        Some(self.bit_offset(structure, path)? / 8)
    }

    /// The same in bits, for members of less than a byte.
    pub(crate) fn bit_offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut id = *self.structs.get(structure.as_bytes())?;
        let mut offset = 0;
        for name in path.split('.') {
            let (bits, member_type) = self.member(self.resolve(id), name, 0)?;
            offset += bits;
            id = member_type;
        }
        Some(offset)
    }

    /// Whether the kernel has a tracepoint of this name that a program can attach to with types.
    pub(crate) fn has_tracepoint(&self, name: &str) -> bool {
        self.typedefs.contains_key(format!("btf_trace_{name}").as_bytes())
    }

    /// How many arguments a tracepoint passes.
    pub(crate) fn tracepoint_args(&self, name: &str) -> Option<u32> {
        // typedef → pointer → prototype, whose first parameter is the tracepoint's private data.
        let typedef = *self.typedefs.get(format!("btf_trace_{name}").as_bytes())?;
        let prototype = self.target(self.target(typedef)?)?;
        let (kind, members, _) = self.header(prototype)?;
        (kind == KIND_FUNC_PROTO).then(|| (members as u32).saturating_sub(1))
    }

    /// The value of an enumerator, wherever it is declared.
    pub(crate) fn enumerator(&self, name: &str) -> Option<u32> {
        self.enumerator_in(name).map(|(_, value)| value)
    }

    /// The enumerators that are declared together with this one, it included; none where there is none.
    pub(crate) fn siblings(&self, name: &str) -> Vec<(String, u32)> {
        let Some((id, _)) = self.enumerator_in(name) else { return Vec::new() };
        let enumerators = self.enumerators(id);
        enumerators.map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value)).collect()
    }

    /// The type that declares an enumerator, and the value.
    fn enumerator_in(&self, name: &str) -> Option<(u32, u32)> {
        (1..self.at.len() as u32).find_map(|id| {
            let (_, value) = self.enumerators(id).find(|(other, _)| *other == name.as_bytes())?;
            Some((id, value))
        })
    }

    /// The enumerators of a type; none if it is of another kind.
    fn enumerators(&self, id: u32) -> impl Iterator<Item = (&[u8], u32)> {
        let (members, at) = match self.header(id) {
            Some((KIND_ENUM, members, at)) => (members, at),
            _ => (0, 0),
        };
        (0..members)
            .filter_map(move |i| Some((self.string(self.word(at + 8 * i)?), self.word(at + 8 * i + 4)?)))
    }

    fn member(&self, id: u32, wanted: &str, depth: u32) -> Option<(u32, u32)> {
        let (kind, members, at) = self.header(id)?;
        if !matches!(kind, KIND_STRUCT | KIND_UNION) || depth > 8 {
            return None;
        }
        let bitfields = self.word(*self.at.get(id as usize)? as usize + 4)? >> 31 != 0;
        for i in 0..members {
            let name = self.string(self.word(at + 12 * i)?);
            let member_type = self.word(at + 12 * i + 4)?;
            let raw = self.word(at + 12 * i + 8)?;
            let bits = if bitfields { raw & 0x00ff_ffff } else { raw };
            if name == wanted.as_bytes() {
                return Some((bits, member_type));
            }
            if name.is_empty()
                && let Some((inner, found)) = self.member(self.resolve(member_type), wanted, depth + 1)
            {
                return Some((bits + inner, found));
            }
        }
        None
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> u32 {
        for _ in 0..16 {
            match self.header(id) {
                Some((KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG, ..)) => {
                    id = self.target(id).unwrap_or(0);
                }
                _ => break,
            }
        }
        id
    }

    /// Kind, number of members, and where they begin.
    fn header(&self, id: u32) -> Option<(u32, usize, usize)> {
        if id == 0 {
            return None;
        }
        let at = *self.at.get(id as usize)? as usize;
        let info = self.word(at + 4)?;
        Some((info >> 24 & 0x1f, (info & 0xffff) as usize, at + 12))
    }

    fn target(&self, id: u32) -> Option<u32> {
        self.word(*self.at.get(id as usize)? as usize + 8)
    }

    fn word(&self, at: usize) -> Option<u32> {
        self.types.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes)
    }

    fn string(&self, at: u32) -> &[u8] {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        rest.split(|&b| b == 0).next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_what_every_kernel_has() {
        let btf = Btf::read(Path::new("/sys/kernel/btf/vmlinux")).unwrap();
        assert_eq!(btf.offset("sock_common", "skc_daddr"), Some(0));
        assert!(
            btf.offset("task_struct", "sched_info.last_queued")
                > btf.offset("task_struct", "sched_info.run_delay")
        );
        assert_eq!(btf.offset("task_struct", "no_such_member"), None);
        assert!(btf.has_tracepoint("sched_switch"));
        assert!(btf.tracepoint_args("sched_switch") >= Some(3));
        assert_eq!(btf.tracepoint_args("inet_sock_set_state"), Some(3));
        assert!(btf.enumerator("memory_cgrp_id").is_some());
        let softirqs = btf.siblings("NET_RX_SOFTIRQ");
        assert!(softirqs.contains(&("HI_SOFTIRQ".to_owned(), 0)), "{softirqs:?}");
        assert!(softirqs.contains(&("NR_SOFTIRQS".to_owned(), softirqs.len() as u32 - 1)), "{softirqs:?}");
        assert!(btf.siblings("NO_SUCH_ENUMERATOR").is_empty());
    }

    #[test]
    fn garbage_is_refused() {
        assert!(matches!(Btf::parse(b""), Err(BtfError::Malformed(_))));
        assert!(matches!(Btf::parse(&[0; 64]), Err(BtfError::Malformed("magic"))));
        let mut cut = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        cut.truncate(5_000);
        assert!(Btf::parse(&cut).is_err());
    }
}
