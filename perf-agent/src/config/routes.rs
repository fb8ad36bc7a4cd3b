//! The user's own routes: `/api/bookings/{id}`, `/files/{path:*}`.
//!
//! All of them become one automaton over segments, which the kernel walks through: a set of patterns that a path may still
//! match is a state, so nothing is tried twice, however many there are.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::str::FromStr;

use perf_common::route::rules::{MAX_STATES, MAX_STEPS, START, State, Step, pattern};
use perf_common::route::{STEPS, Segment};
use serde::Deserialize;

/// One of them, as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "String"))]
pub(crate) struct Pattern {
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part<'p> {
    Literal(&'p str),
    /// `{name}`: one segment, which is not empty.
    One,
    /// `{name:*}`: what follows the slash, whatever it is.
    Rest,
}

impl Pattern {
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// The names in braces.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &str> {
        self.text.split('/').filter_map(variable)
    }

    /// What a route has in the places of the variables; `None` where it does not match.
    ///
    /// The route is one of the page: what was folded there (`{id}`, `{*}`) matches a variable, and nothing else does.
    pub(crate) fn values<'r>(&self, route: &'r str) -> Option<Vec<(&str, &'r str)>> {
        let mut values = Vec::new();
        let mut rest = Some(route);
        for part in self.text.split('/') {
            let all = rest?;
            let (segment, behind) = match all.split_once('/') {
                Some((segment, behind)) => (segment, Some(behind)),
                None => (all, None),
            };
            match variable(part) {
                Some(name) if part.ends_with(":*}") => {
                    values.push((name, all));
                    return Some(values);
                }
                Some(name) if !segment.is_empty() => values.push((name, segment)),
                None if part == segment => {}
                _ => return None,
            }
            rest = behind;
        }
        rest.is_none().then_some(values)
    }

    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        self.text.split('/').map(|part| match part.strip_prefix('{') {
            Some(name) if name.ends_with(":*}") => Part::Rest,
            Some(_) => Part::One,
            None => Part::Literal(part),
        })
    }
}

/// The name in a part that is one in braces.
fn variable(part: &str) -> Option<&str> {
    let inside = part.strip_prefix('{')?.strip_suffix('}')?;
    Some(inside.strip_suffix(":*").unwrap_or(inside))
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            Err(format!(
                "{text:?} is no route: {what}; write one like `/api/bookings/{{id}}` or `/files/{{path:*}}`"
            ))
        };
        let Some(path) = text.strip_prefix('/') else { return wrong("it does not begin with a slash") };
        if text.split('/').map(|part| part.len() / 8 + 1).sum::<usize>() > STEPS {
            return wrong("the kernel does not read that much of a path");
        }
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            let Some(inside) = part.strip_prefix('{') else {
                if part.contains(['{', '}']) {
                    return wrong("braces stand around a whole segment");
                }
                if part.contains(['?', '#']) {
                    return wrong("a query or fragment is no part of it");
                }
                if !part.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return wrong("what is no ASCII letter, digit or sign is percent-encoded in a URL");
                }
                continue;
            };
            let Some(inside) = inside.strip_suffix('}') else {
                return wrong("braces stand around a whole segment");
            };
            let name = inside.strip_suffix(":*").unwrap_or(inside);
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)) {
                return wrong("a name in braces is letters, digits, `_` and `-`");
            }
            if name != inside && parts.peek().is_some() {
                return wrong("`:*` takes the rest of the path, so it comes last");
            }
        }
        Ok(Self { text: text.to_owned() })
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text
    }
}

/// All of them, and what they are compiled to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "Vec<Pattern>")]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "Vec<Pattern>"))]
pub(crate) struct Patterns {
    patterns: Vec<Pattern>,
    automaton: Automaton,
}

impl Patterns {
    pub(crate) fn automaton(&self) -> &Automaton {
        &self.automaton
    }

    /// Each fingerprint with its text.
    pub(crate) fn named(&self) -> impl Iterator<Item = (u64, &str)> {
        self.patterns.iter().map(|route| (pattern(route.as_str()), route.as_str()))
    }
}

impl TryFrom<Vec<Pattern>> for Patterns {
    type Error = String;

    fn try_from(patterns: Vec<Pattern>) -> Result<Self, String> {
        let automaton = Automaton::compile(&patterns)?;
        Ok(Self { patterns, automaton })
    }
}

#[cfg(test)]
impl From<Patterns> for Vec<Pattern> {
    fn from(Patterns { patterns, automaton: _ }: Patterns) -> Self {
        patterns
    }
}

/// What the kernel's maps of states and steps are to hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Automaton {
    /// By number; the first one matches nothing. Empty without patterns.
    pub(crate) states: Vec<State>,
    pub(crate) steps: HashMap<Step, u64>,
}

/// A place in the tree of patterns.
#[derive(Default)]
struct Node<'p> {
    literals: BTreeMap<&'p str, usize>,
    any: Option<usize>,
    accept: Option<&'p Pattern>,
    rest: Option<&'p Pattern>,
}

/// The patterns as a tree; the first node is where paths begin.
struct Tree<'p>(Vec<Node<'p>>);

impl<'p> Tree<'p> {
    fn grow(patterns: &'p [Pattern]) -> Result<Self, String> {
        let mut tree = Self(vec![Node::default()]);
        for pattern in patterns {
            let mut at = 0;
            let mut rest = false;
            for part in pattern.parts() {
                let new = tree.0.len();
                let node = &mut tree.0[at];
                at = match part {
                    Part::Literal(text) => *node.literals.entry(text).or_insert(new),
                    Part::One => *node.any.get_or_insert(new),
                    Part::Rest => {
                        rest = true;
                        break;
                    }
                };
                if at == new {
                    tree.0.push(Node::default());
                }
            }
            let node = &mut tree.0[at];
            let end = if rest { &mut node.rest } else { &mut node.accept };
            if let Some(before) = end.replace(pattern) {
                return Err(format!("`{}` and `{}` match the same paths", before.as_str(), pattern.as_str()));
            }
        }
        Ok(tree)
    }

    /// Where a literal leads: to its own branch first, then to that of any segment. No name stands for an empty one.
    fn after(&self, set: &[usize], literal: &str) -> Vec<usize> {
        let nodes = set.iter().map(|&at| &self.0[at]);
        let next = |node: &Node<'p>| {
            let any = node.any.filter(|_| !literal.is_empty());
            node.literals.get(literal).copied().into_iter().chain(any)
        };
        nodes.flat_map(next).collect()
    }
}

impl Automaton {
    fn compile(patterns: &[Pattern]) -> Result<Self, String> {
        if patterns.is_empty() {
            return Ok(Self::default());
        }
        let tree = Tree::grow(patterns)?;
        let mut states = vec![State::default(); 2];
        let mut steps = HashMap::new();
        let mut numbers = HashMap::from([(vec![0], START)]);
        let mut waiting = VecDeque::from([(vec![0], START)]);
        let mut number = |set: Vec<usize>, states: &mut Vec<State>, waiting: &mut VecDeque<_>| {
            if set.is_empty() {
                return 0;
            }
            *numbers.entry(set).or_insert_with_key(|set| {
                let number = states.len() as u64;
                states.push(State::default());
                waiting.push_back((set.clone(), number));
                number
            })
        };
        while let Some((set, at)) = waiting.pop_front() {
            let nodes = || set.iter().map(|&node| &tree.0[node]);
            let fingerprint = |end: Option<&Pattern>| end.map_or(0, |end| pattern(end.as_str()));
            // A rest takes whatever comes, so what goes behind it in order never has its turn.
            let last = set.iter().position(|&node| tree.0[node].rest.is_some()).unwrap_or(set.len());
            let going_on: Vec<usize> = set.iter().copied().take(last + 1).collect();
            let onward = || going_on.iter().map(|&node| &tree.0[node]);
            let any = number(onward().filter_map(|node| node.any).collect(), &mut states, &mut waiting);
            let accept = fingerprint(nodes().find_map(|node| node.accept));
            let rest = fingerprint(nodes().find_map(|node| node.rest));
            let literals: BTreeSet<&str> = onward().flat_map(|node| node.literals.keys().copied()).collect();
            for text in literals {
                let next = number(tree.after(&going_on, text), &mut states, &mut waiting);
                steps.insert(Step { state: at, literal: Segment::of(text.as_bytes()).literal() }, next);
            }
            if let Some(state) = states.get_mut(at as usize) {
                *state = State { any, accept, rest };
            }
            if states.len() > MAX_STATES as usize || steps.len() > MAX_STEPS as usize {
                return Err("so many routes with so many names in them are more than the kernel's maps hold"
                    .to_owned());
            }
        }
        Ok(Self { states, steps })
    }
}

#[cfg(test)]
mod tests {
    use perf_common::route::rules::{self, matching};
    use perf_common::route::{Segments, each_segment};

    use super::*;

    impl rules::Patterns for &Automaton {
        fn state(&mut self, state: u64) -> State {
            self.states.get(state as usize).copied().unwrap_or_default()
        }
        fn step(&mut self, step: &Step) -> u64 {
            self.steps.get(step).copied().unwrap_or_default()
        }
    }

    fn patterns(texts: &[&str]) -> Result<Patterns, String> {
        texts.iter().map(|text| text.parse()).collect::<Result<Vec<Pattern>, _>>()?.try_into()
    }

    /// The pattern that a path matches.
    fn route<'p>(patterns: &'p Patterns, path: &str) -> Option<&'p str> {
        let mut segments = Vec::new();
        each_segment(path.as_bytes(), |_, _, segment| segments.push(segment));
        let found = matching(&Segments::of(&segments), &mut patterns.automaton());
        patterns.named().find(|(fingerprint, _)| *fingerprint == found).map(|(_, text)| text)
    }

    #[test]
    fn the_most_literal_pattern_that_matches_all_of_a_path_wins() {
        let all = patterns(&[
            "/api/bookings/{id}",
            "/api/bookings/latest",
            "/api/{kind}/{id}/comments",
            "/api/{kind}/",
            "/v/{version}/2024/x",
            "/{tenant}/health",
            "/files/{path:*}",
            "/files/index/{path:*}",
            "/a/b/c",
            "/a/{x}/d",
            "/",
        ])
        .unwrap();
        for (path, expected) in [
            ("/api/bookings/17", Some("/api/bookings/{id}")),
            ("/api/bookings/ann", Some("/api/bookings/{id}")),
            ("/api/bookings/latest?x=1", Some("/api/bookings/latest")),
            // Neither `latest` nor `bookings` is in its way.
            ("/api/bookings/latest/comments", Some("/api/{kind}/{id}/comments")),
            ("/api/bookings/", Some("/api/{kind}/")),
            ("/api/bookings", None),
            ("/api/bookings/17/x", None),
            ("/v/3/2024/x", Some("/v/{version}/2024/x")),
            ("/v/3/2025/x", None),
            ("/acme/health", Some("/{tenant}/health")),
            ("/files/health", Some("/files/{path:*}")),
            ("/files/", Some("/files/{path:*}")),
            ("/files", None),
            ("/files/index/a/b", Some("/files/index/{path:*}")),
            ("/files/index", Some("/files/{path:*}")),
            ("/a/b/d", Some("/a/{x}/d")),
            ("/a/b/c", Some("/a/b/c")),
            ("/a/b/e", None),
            ("//health", None),
            ("/", Some("/")),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(route(&all, path), expected, "{path}");
        }
    }

    #[test]
    fn what_is_no_route_is_refused() {
        for (text, why) in [
            ("api", "begin with a slash"),
            ("", "begin with a slash"),
            ("/a/{id", "whole segment"),
            ("/a/id}", "whole segment"),
            ("/a/x{id}", "whole segment"),
            ("/a/{}", "letters, digits"),
            ("/a/{:*}", "letters, digits"),
            ("/a/{a b}", "letters, digits"),
            ("/a/{b:*}/c", "comes last"),
            ("/a?b=c", "query"),
            ("/a b", "percent-encoded"),
            ("/é", "percent-encoded"),
            (&"/a".repeat(64), "not read that much"),
            (&format!("/{}", "a".repeat(600)), "not read that much"),
        ] {
            let error = text.parse::<Pattern>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let error = patterns(&["/a/{b}", "/x", "/a/{c}"]).unwrap_err();
        assert_eq!(error, "`/a/{b}` and `/a/{c}` match the same paths");
        assert!(patterns(&["/a/{b}", "/a/{b:*}", "/a/{c}/"]).is_ok());
        // Each set of these is a state of its own.
        let many: Vec<String> =
            (0..16).map(|n| (0..16).map(|m| if n == m { "/x" } else { "/{y}" }).collect()).collect();
        let error = patterns(&many.iter().map(String::as_str).collect::<Vec<_>>()).unwrap_err();
        assert!(error.contains("more than the kernel's maps hold"), "{error}");
    }
}
