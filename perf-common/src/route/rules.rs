//! What user space tells the kernel about routes: which parents are collapsed, and the user's own patterns.
//!
//! The maps hold the rules; here is what a path's segments mean under them, the same for both sides.

use super::{BASIS, COLLAPSED, SEGMENTS, Segments, below, fingerprint};
use crate::bytes::opaque;

/// Bits that tell whether a place in the tree can be one with a rule: 4,096 of them, so that with a hundred rules two places
/// in a hundred are looked up for nothing.
const WORDS: usize = 64;

/// The sizes of the maps: collapsed parents and kept children of all workloads, and what the patterns are compiled to.
pub const MAX_COLLAPSED: u32 = 4096;
pub const MAX_KEPT: u32 = 16_384;
pub const MAX_STATES: u32 = 1024;
pub const MAX_STEPS: u32 = 4096;

/// What there is of rules, at one glance.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Not 0 if there are patterns.
    pub patterns: u64,
    /// How many parents are collapsed.
    pub collapsed: u64,
    bits: [u64; WORDS],
}

crate::pod!(Summary: 16 + 8 * WORDS);

impl Summary {
    pub const EMPTY: Self = Self { patterns: 0, collapsed: 0, bits: [0; WORDS] };

    /// Whether the parent with this [`key`] may be collapsed.
    #[inline(always)]
    #[must_use]
    pub fn may_collapse(&self, key: u64) -> bool {
        // SAFETY: masked to the array's entries. The upper bits are the ones that a product mixes.
        let word = unsafe { *self.bits.as_ptr().add((opaque(key >> 58) & (WORDS as u64 - 1)) as usize) };
        word >> (key >> 52 & 63) & 1 != 0
    }

    /// Counts one more parent as collapsed.
    pub fn collapse(&mut self, key: u64) {
        self.collapsed += 1;
        if let Some(word) = self.bits.get_mut((key >> 58) as usize) {
            *word |= 1 << (key >> 52 & 63);
        }
    }
}

/// A place in the tree of one workload: by this a rule is found.
#[inline(always)]
#[must_use]
pub fn key(workload: u64, place: u64) -> u64 {
    (workload.rotate_left(32) ^ place).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Where the path begins, as a parent.
pub const ROOT: u64 = BASIS;

/// The rules by which places are collapsed.
pub trait Collapse {
    /// Whether the children of the parent with this key are folded.
    fn is_collapsed(&mut self, parent: u64) -> bool;
    /// Whether the child with this key is one that is not.
    fn is_kept(&mut self, child: u64) -> bool;
}

/// What a path is under the rules. In the kernel it lies in a map, so that the verifier knows nothing of it: it would walk
/// through every combination of folded segments.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Outcome {
    /// The fingerprint.
    pub route: u64,
    /// A bit for each segment that was folded, the first one lowest.
    pub collapsed: u64,
}

impl Outcome {
    pub const EMPTY: Self = Self { route: 0, collapsed: 0 };

    /// Folds what the rules say.
    #[inline(always)]
    pub fn collapse<C: Collapse>(&mut self, segments: &Segments, workload: u64, rules: &mut C) {
        self.walk(segments, |_, parent, child| {
            rules.is_collapsed(key(workload, parent)) && !rules.is_kept(key(workload, child))
        });
    }

    /// Goes down the path and folds the segments for which `folds` says so, by their number, the parent and the child.
    #[inline(always)]
    pub fn walk(&mut self, segments: &Segments, mut folds: impl FnMut(usize, u64, u64) -> bool) {
        let Self { route, collapsed } = self;
        store(route, ROOT);
        store(collapsed, 0);
        let mut at = 0;
        loop {
            if at >= segments.len() {
                break;
            }
            let segment = segments.get(at);
            let parent = load(route);
            let mut child = segment.below(parent);
            // What is masked is one child already, and an empty segment is a place of its own: the list, and not an entry.
            if !segment.is_masked() && !segment.is_empty() && folds(at, parent, child) {
                child = below(parent, COLLAPSED);
                let before = load(collapsed);
                store(collapsed, before | 1 << at);
            }
            store(route, child);
            at += 1;
            if at == SEGMENTS {
                break;
            }
        }
        let hash = load(route);
        store(route, fingerprint(hash));
    }
}

/// Everything that differs by path goes through memory.
#[inline(always)]
fn load(word: &u64) -> u64 {
    // SAFETY: a reference.
    unsafe { core::ptr::from_ref(word).read_volatile() }
}

#[inline(always)]
fn store(word: &mut u64, value: u64) {
    // SAFETY: as above.
    unsafe { core::ptr::from_mut(word).write_volatile(value) };
}

/// A state of the automaton that the patterns are compiled to; 0 is where none of them can match any more.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Where a segment leads that is no literal of a pattern's; 0 where it leads nowhere.
    pub any: u64,
    /// The fingerprint of the pattern that ends here; 0 if none does.
    pub accept: u64,
    /// The fingerprint of the pattern for which the rest may be anything; 0 if there is none.
    pub rest: u64,
}

crate::pod!(State: 24);

/// A literal segment as a key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Step {
    pub state: u64,
    /// [`super::Segment::literal`].
    pub literal: u64,
}

crate::pod!(Step: 16);

/// Where the automaton begins.
pub const START: u64 = 1;

/// The compiled patterns.
pub trait Patterns {
    /// All zero for 0 and for what does not exist.
    fn state(&mut self, state: u64) -> State;
    /// 0 if that literal is none of this state's.
    fn step(&mut self, step: &Step) -> u64;
}

/// The fingerprint of the pattern that the path matches, or 0.
#[inline(always)]
pub fn matching<P: Patterns>(segments: &Segments, patterns: &mut P) -> u64 {
    let mut state = opaque(START);
    let mut rest = opaque(0);
    let mut at = 0;
    loop {
        if at >= segments.len() {
            break;
        }
        let segment = segments.get(at);
        let here = patterns.state(state);
        if here.rest != 0 {
            rest = here.rest;
        }
        let next = patterns.step(&Step { state, literal: segment.literal() });
        state = if next != 0 {
            next
        } else if segment.is_empty() {
            0
        } else {
            here.any
        };
        at += 1;
        if state == 0 || at == SEGMENTS {
            break;
        }
    }
    let accept = patterns.state(state).accept;
    if accept != 0 { accept } else { rest }
}

/// The fingerprint of a pattern: of its text, since it is found by its segments and not by their hashes.
#[must_use]
pub fn pattern(text: &str) -> u64 {
    fingerprint(below(!ROOT, super::Segment::of(text.as_bytes()).literal()))
}
