//! Where the tree of paths is crowded: pure, from counts to rules.
//!
//! A workload's routes are a tree, by segments. A place with more children than is allowed is *collapsed*: from then on its
//! children are `{*}`, but for those that are *kept* because they carry a real share of the traffic. The tree is made anew from
//! the cells whenever there are new ones, so it takes no memory between, and none that traffic could make grow.

use std::collections::{BTreeMap, HashMap, HashSet};

use perf_common::route::Segments;
use perf_common::route::rules::{Collapse, MAX_COLLAPSED, MAX_KEPT, Outcome, Summary, key};

/// The rules that were made so far, by the keys of their places.
pub(super) struct Rules {
    pub(super) summary: Summary,
    collapsed: HashSet<u64>,
    kept: HashSet<u64>,
    max_children: usize,
    /// How many routes a workload may have: beyond that, fewer children are a crowd.
    max_routes: usize,
}

/// One rule, for the kernel.
#[derive(Debug, PartialEq)]
pub(super) struct New {
    pub(super) parent: u64,
    pub(super) kept: Vec<u64>,
}

/// One route of a workload.
pub(super) struct Counted {
    pub(super) segments: Segments,
    /// Those that the kernel folded already.
    pub(super) collapsed: u64,
    /// The last segment is cut, so its hash is not the kernel's.
    pub(super) cut: bool,
    pub(super) count: u64,
}

/// Fewer children are never a crowd.
const LEAST: usize = 4;

#[derive(Default)]
struct Child {
    count: u64,
    cut: bool,
}

/// The children of each place that has more than are allowed, by its depth.
type Level = HashMap<u64, HashMap<u64, Child>>;

impl Collapse for &Rules {
    fn is_collapsed(&mut self, parent: u64) -> bool {
        self.collapsed.contains(&parent)
    }

    fn is_kept(&mut self, child: u64) -> bool {
        self.kept.contains(&child)
    }
}

impl Rules {
    pub(super) fn new(max_children: usize, max_routes: usize) -> Self {
        Self {
            summary: Summary::EMPTY,
            collapsed: HashSet::new(),
            kept: HashSet::new(),
            max_children,
            max_routes: max_routes.max(LEAST),
        }
    }

    /// Which segments of a route are folded: those that the kernel folded, and what the rules say by now.
    pub(super) fn collapsed(&self, workload: u64, segments: &Segments, collapsed: u64) -> u64 {
        self.walk(workload, segments, collapsed, |_, _, _| {}).collapsed
    }

    fn walk(
        &self,
        workload: u64,
        segments: &Segments,
        collapsed: u64,
        mut each: impl FnMut(usize, u64, u64),
    ) -> Outcome {
        let mut rules = self;
        let mut outcome = Outcome::EMPTY;
        outcome.walk(segments, |at, parent, child| {
            let folds = collapsed >> at & 1 != 0
                || rules.is_collapsed(key(workload, parent)) && !rules.is_kept(key(workload, child));
            if !folds {
                each(at, parent, child);
            }
            folds
        });
        outcome
    }

    /// Makes the rules that a workload's routes call for.
    pub(super) fn learn(&mut self, workload: u64, routes: &[Counted]) -> Vec<New> {
        let mut new = Vec::new();
        let mut most = self.max_children;
        loop {
            let (crowded, distinct) = self.crowded(workload, routes, most);
            if crowded.is_empty() {
                // Crowds of crowds below the limit: a tree with fifty children everywhere has no end either.
                if distinct <= self.max_routes || most <= LEAST {
                    return new;
                }
                most = (most / 2).max(LEAST);
            }
            for (parent, children) in crowded {
                let kept = kept(&children, most).map(|child| key(workload, child)).collect::<Vec<_>>();
                let fits = self.collapsed.len() < MAX_COLLAPSED as usize
                    && self.kept.len() + kept.len() <= MAX_KEPT as usize;
                if !fits {
                    return new;
                }
                let parent = key(workload, parent);
                self.collapsed.insert(parent);
                self.kept.extend(&kept);
                self.summary.collapse(parent);
                new.push(New { parent, kept });
            }
        }
    }

    /// The crowded places nearest to the root, because what is below them changes when they collapse; and how many routes
    /// there are.
    fn crowded(&self, workload: u64, routes: &[Counted], most: usize) -> (Level, usize) {
        let mut levels: BTreeMap<usize, Level> = BTreeMap::new();
        let mut distinct = HashSet::new();
        for Counted { segments, collapsed, cut, count } in routes {
            let last = segments.len().saturating_sub(1);
            let outcome = self.walk(workload, segments, *collapsed, |at, parent, child| {
                let children = levels.entry(at).or_default().entry(parent).or_default();
                let child = children.entry(child).or_default();
                child.count += count;
                child.cut |= *cut && at == last;
            });
            distinct.insert(outcome.route);
        }
        let crowded = levels.into_values().find_map(|mut level| {
            // A place that is collapsed has no more children than are kept, and some that this agent saw before.
            level.retain(|parent, children| {
                children.len() > most && !self.collapsed.contains(&key(workload, *parent))
            });
            (!level.is_empty()).then_some(level)
        });
        (crowded.unwrap_or_default(), distinct.len())
    }
}

/// The children that stay: those with more than four times the traffic of the middle one, or with their full share of all of
/// it; never more than are allowed.
fn kept(children: &HashMap<u64, Child>, most: usize) -> impl Iterator<Item = u64> {
    let mut counts: Vec<u64> = children.values().map(|child| child.count).collect();
    counts.sort_unstable();
    let middle = counts.get(counts.len() / 2).copied().unwrap_or(0);
    let share = counts.iter().sum::<u64>() / most as u64;
    let mut kept: Vec<(u64, u64)> = children
        .iter()
        .filter(|(_, child)| {
            !child.cut && child.count > 1 && (child.count > 4 * middle || child.count > share)
        })
        .map(|(place, child)| (child.count, *place))
        .collect();
    kept.sort_unstable_by(|a, b| b.cmp(a));
    kept.truncate(most);
    kept.into_iter().map(|(_, place)| place)
}

#[cfg(test)]
mod tests {
    use perf_common::route::{describe, each_segment};

    use super::*;

    const WORKLOAD: u64 = 7;

    fn segments(path: &str) -> Segments {
        let mut segments = Vec::new();
        each_segment(path.as_bytes(), |_, _, segment| segments.push(segment));
        Segments::of(&segments)
    }

    fn counted(path: &str, count: u64) -> Counted {
        Counted { segments: segments(path), collapsed: 0, cut: false, count }
    }

    fn route(rules: &Rules, path: &str) -> String {
        let mut text = Vec::new();
        describe(path.as_bytes(), rules.collapsed(WORKLOAD, &segments(path), 0), |part| {
            text.extend_from_slice(part);
        });
        String::from_utf8(text).unwrap()
    }

    /// Words without digits, which no mask takes.
    fn word(n: usize) -> String {
        let letters = n.to_string().bytes().map(|digit| char::from(digit - b'0' + b'g')).collect::<String>();
        format!("w{letters}")
    }

    fn crowd(before: &str, behind: &str, n: usize) -> Vec<Counted> {
        (0..n).map(|n| counted(&format!("{before}{}{behind}", word(n)), 1)).collect()
    }

    #[test]
    fn a_crowd_collapses_and_what_has_traffic_stays() {
        let mut rules = Rules::new(50, 1000);
        let mut routes = crowd("/users/", "", 50);
        assert_eq!(rules.learn(WORKLOAD, &routes), [], "fifty are none");
        routes.push(counted("/users/me", 40));
        routes.push(counted("/users/17", 40));
        routes.push(counted("/health", 3));
        let new = rules.learn(WORKLOAD, &routes);
        assert_eq!(new.len(), 1, "{new:?}");
        assert_eq!(new[0].kept.len(), 1, "{new:?}");
        assert!(rules.summary.may_collapse(new[0].parent));
        for (path, expected) in [
            ("/users/me", "/users/me"),
            ("/users/17", "/users/{id}"),
            ("/users/wg", "/users/{*}"),
            ("/users/new/posts", "/users/{*}/posts"),
            ("/users/", "/users/"),
            ("/health", "/health"),
            ("/other", "/other"),
        ] {
            assert_eq!(route(&rules, path), expected);
        }
        assert_eq!(rules.learn(WORKLOAD, &routes), [], "once is enough");
        assert_eq!(rules.collapsed(8, &segments("/users/wg"), 0), 0, "another workload's");
    }

    #[test]
    fn crowds_below_crowds_collapse_at_once() {
        let mut rules = Rules::new(50, 1000);
        let mut routes: Vec<_> =
            (0..100).map(|n| counted(&format!("/{}/{}/{}", word(n), word(n), word(n)), 1)).collect();
        routes.extend(crowd("/api/", "/detail", 60));
        routes.push(counted("/api/known", 200));
        rules.learn(WORKLOAD, &routes);
        assert_eq!(route(&rules, "/a/b/c"), "/{*}/{*}/{*}");
        assert_eq!(route(&rules, "/api/x/detail"), "/api/{*}/detail");
        assert_eq!(route(&rules, "/api/known"), "/api/known");
    }

    #[test]
    fn a_tree_without_crowds_is_bounded_too() {
        let mut rules = Rules::new(50, 300);
        let routes: Vec<_> = (0..20 * 20 * 20)
            .map(|n| counted(&format!("/{}/{}/{}", word(n % 20), word(n / 20 % 20), word(n / 400)), 1))
            .collect();
        rules.learn(WORKLOAD, &routes);
        let shown: HashSet<_> = routes.iter().map(|r| rules.collapsed(WORKLOAD, &r.segments, 0)).collect();
        assert!(shown.iter().any(|folded| *folded != 0));
        let (_, distinct) = rules.crowded(WORKLOAD, &routes, 50);
        assert!(distinct <= 300, "{distinct}");
    }

    #[test]
    fn children_that_are_cut_are_counted_and_never_kept() {
        let mut rules = Rules::new(50, 1000);
        let mut routes = crowd("/", "", 60);
        for route in &mut routes {
            (route.cut, route.count) = (true, 1);
        }
        routes[0].count = 100;
        let new = rules.learn(WORKLOAD, &routes);
        assert_eq!(new.len(), 1);
        assert!(new[0].kept.is_empty(), "{new:?}");
    }

    #[test]
    fn rules_are_bounded() {
        let mut rules = Rules::new(4, 1_000_000);
        for workload in 0..u64::from(MAX_COLLAPSED) + 10 {
            rules.learn(workload, &crowd("/", "", 5));
        }
        assert_eq!(rules.collapsed.len(), MAX_COLLAPSED as usize);
    }
}
