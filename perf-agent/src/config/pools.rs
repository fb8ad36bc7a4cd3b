//! How large a pool of connections may become, where the user knows.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What is told of pools of connections to databases.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct Pools {
    pub(crate) max_sizes: MaxSizes,
}

/// By service and destination, as these stand in the labels.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "Vec<Entry>")]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "Vec<Entry>"))]
pub(crate) struct MaxSizes(BTreeMap<(String, String), u32>);

/// As the file has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
struct Entry {
    service: String,
    destination: String,
    size: i64,
}

impl MaxSizes {
    pub(crate) fn get(&self, service: &str, destination: &str) -> Option<u32> {
        self.0.get(&(service.to_owned(), destination.to_owned())).copied()
    }
}

impl TryFrom<Vec<Entry>> for MaxSizes {
    type Error = String;

    fn try_from(entries: Vec<Entry>) -> Result<Self, String> {
        let mut sizes = BTreeMap::new();
        for Entry { service, destination, size } in entries {
            let size = u32::try_from(size)
                .ok()
                .filter(|size| *size != 0)
                .ok_or_else(|| format!("a pool of {size} connections is none: write 1 or more"))?;
            if sizes.insert((service.clone(), destination.clone()), size).is_some() {
                return Err(format!("the pool of {service} at {destination} is listed twice"));
            }
        }
        Ok(Self(sizes))
    }
}

#[cfg(test)]
impl From<MaxSizes> for Vec<Entry> {
    fn from(MaxSizes(sizes): MaxSizes) -> Self {
        let entry = |((service, destination), size)| Entry { service, destination, size: i64::from(size) };
        sizes.into_iter().map(entry).collect()
    }
}
