//! The names of domains.

use std::collections::{HashMap, HashSet};

use perf_common::dns::{NameSample, OTHER, describe};

/// The text of each fingerprint.
pub(super) struct Domains {
    enabled: bool,
    names: HashMap<u64, String>,
    /// Fingerprints that were exported as `other` because no sample had come; they stay there, so that `other` never
    /// falls.
    unnamed: HashSet<u64>,
}

impl Domains {
    pub(super) fn new(enabled: bool) -> Self {
        Self { enabled, names: HashMap::new(), unnamed: HashSet::new() }
    }

    pub(super) fn learn(&mut self, sample: &[u8]) {
        let Some(sample) = read_sample(sample) else { return };
        if self.unnamed.contains(&sample.name) {
            return;
        }
        let mut wire = [0; 256];
        for (chunk, word) in wire.chunks_exact_mut(8).zip(sample.wire) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let len = (sample.len as usize).min(wire.len());
        let mut text = Vec::new();
        describe(&wire[..len], |part| text.extend_from_slice(part));
        self.names.insert(sample.name, String::from_utf8_lossy(&text).into_owned());
    }

    /// The label of a fingerprint: empty where domains are not told apart.
    pub(super) fn name(&mut self, fingerprint: u64) -> String {
        if !self.enabled {
            return String::new();
        }
        if fingerprint != OTHER {
            if let Some(name) = self.names.get(&fingerprint) {
                return name.clone();
            }
            // Bounded by the kernel's map of domains, as the names are.
            self.unnamed.insert(fingerprint);
        }
        "other".to_owned()
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
        assert_eq!((domains.name(7), domains.name(OTHER)), ("www.a".to_owned(), "other".to_owned()));
        // Too late: `other` has shown what it counts.
        assert_eq!(domains.name(8), "other");
        domains.learn(&sample(8, b"\x01b\0"));
        assert_eq!(domains.name(8), "other");
    }

    #[test]
    fn a_length_that_lies_harms_nobody() {
        let mut domains = Domains::new(true);
        let mut lying = sample(7, b"\x01a\x3fb");
        lying[8..16].copy_from_slice(&u64::MAX.to_ne_bytes());
        domains.learn(&lying);
        assert!(domains.name(7).starts_with("a.b"));
        assert_eq!(Domains::new(false).name(7), "");
    }
}
