//! The names of domains.

use std::collections::HashMap;
use std::time::Instant;

use perf_common::dns::{NameSample, OTHER, describe};

use crate::probes::is_over;

/// The text of each fingerprint.
pub(super) struct Domains {
    enabled: bool,
    names: HashMap<u64, String>,
    /// Fingerprints without a sample, and since when. As of routes, they are held back for a while; then they are `other`,
    /// and stay it, so that `other` never falls.
    unnamed: HashMap<u64, Instant>,
}

impl Domains {
    pub(super) fn new(enabled: bool) -> Self {
        Self { enabled, names: HashMap::new(), unnamed: HashMap::new() }
    }

    pub(super) fn learn(&mut self, sample: &[u8]) {
        let Some(sample) = read_sample(sample) else { return };
        if self.unnamed.get(&sample.name).is_some_and(is_over) {
            return;
        }
        self.unnamed.remove(&sample.name);
        let mut wire = [0; 256];
        for (chunk, word) in wire.chunks_exact_mut(8).zip(sample.wire) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let len = (sample.len as usize).min(wire.len());
        let mut text = Vec::new();
        describe(&wire[..len], |part| text.extend_from_slice(part));
        self.names.insert(sample.name, String::from_utf8_lossy(&text).into_owned());
    }

    /// The label of a fingerprint: empty where domains are not told apart, none as long as it may still come.
    pub(super) fn name(&mut self, fingerprint: u64) -> Option<String> {
        if !self.enabled {
            return Some(String::new());
        }
        if fingerprint != OTHER {
            if let Some(name) = self.names.get(&fingerprint) {
                return Some(name.clone());
            }
            // Bounded by the kernel's map of domains, as the names are.
            if !is_over(self.unnamed.entry(fingerprint).or_insert_with(Instant::now)) {
                return None;
            }
        }
        Some("other".to_owned())
    }

    /// The label of a fingerprint by now.
    pub(super) fn name_so_far(&self, fingerprint: u64) -> String {
        if !self.enabled {
            return String::new();
        }
        self.names.get(&fingerprint).cloned().unwrap_or_else(|| "other".to_owned())
    }
}

fn read_sample(bytes: &[u8]) -> Option<NameSample> {
    if bytes.len() < size_of::<NameSample>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is a sample.
    Some(unsafe { bytes.as_ptr().cast::<NameSample>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: u64, wire: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<NameSample>()];
        bytes[..8].copy_from_slice(&name.to_ne_bytes());
        bytes[8..16].copy_from_slice(&(wire.len() as u64).to_ne_bytes());
        bytes[16..16 + wire.len()].copy_from_slice(wire);
        bytes
    }

    #[test]
    fn a_name_is_known_from_its_sample_on() {
        let mut domains = Domains::new(true);
        domains.learn(&sample(7, b"\x03WWW\x01a\0"));
        domains.learn(&[0; 10]);
        assert_eq!(domains.name(7).as_deref(), Some("www.a"));
        assert_eq!(domains.name(OTHER).as_deref(), Some("other"));
        // On its way.
        assert_eq!(domains.name(8), None);
        domains.learn(&sample(8, b"\x01b\0"));
        assert_eq!(domains.name(8).as_deref(), Some("b"));
        // Too late: `other` has shown what it counts.
        domains.unnamed.insert(9, Instant::now().checked_sub(2 * crate::probes::ON_ITS_WAY).unwrap());
        assert_eq!(domains.name(9).as_deref(), Some("other"));
        domains.learn(&sample(9, b"\x01c\0"));
        assert_eq!(domains.name(9).as_deref(), Some("other"));
    }

    #[test]
    fn a_length_that_lies_harms_nobody() {
        let mut domains = Domains::new(true);
        let mut lying = sample(7, b"\x01a\x3fb");
        lying[8..16].copy_from_slice(&u64::MAX.to_ne_bytes());
        domains.learn(&lying);
        assert!(domains.name(7).unwrap().starts_with("a.b"));
        assert_eq!(Domains::new(false).name(7).as_deref(), Some(""));
    }
}
