use std::collections::{HashMap, HashSet};

use super::rules::{Collapse, Outcome, Patterns, ROOT, START, State, Step, Summary, key, matching, pattern};
use super::*;

fn text(path: &str, collapsed: u64) -> String {
    let mut out = Vec::new();
    describe(path.as_bytes(), collapsed, |part| out.extend_from_slice(part));
    String::from_utf8(out).unwrap()
}

/// As the parser reads it.
fn read(path: &[u8]) -> (u64, Segments) {
    let mut segments = Segments::EMPTY;
    let mut reader = Path::start(0, &mut segments);
    let mut rest = path;
    let mut steps = 0;
    while !rest.is_empty() && steps < STEPS {
        steps += 1;
        let mut word = [0; 8];
        let len = rest.len().min(8);
        word[..len].copy_from_slice(&rest[..len]);
        let inside = reader.segment(u64::from_le_bytes(word)) as usize;
        rest = &rest[inside.min(len)..];
        if inside < 8 {
            if rest.is_empty() || reader.stop(rest[0], &mut segments) == Read::End {
                break;
            }
            rest = &rest[1..];
        }
    }
    (reader.finish(&mut segments), segments)
}

fn outcome(path: &str, collapsed: u64) -> Outcome {
    let mut outcome = Outcome::EMPTY;
    outcome.walk(&read(path.as_bytes()).1, |at, _, _| collapsed >> at & 1 != 0);
    outcome
}

#[test]
fn variable_segments_are_masked() {
    for (path, route) in [
        ("/", "/"),
        ("", ""),
        ("/api/bookings/123", "/api/bookings/{id}"),
        ("/api/bookings/123/", "/api/bookings/{id}/"),
        ("/a/550e8400-e29b-41d4-a716-446655440000/b", "/a/{id}/b"),
        ("/commit/da39a3ee5e6b4b0d3255bfef95601890afd80709", "/commit/{id}"),
        ("/day/2024-01-31", "/day/{id}"),
        ("/day/31-Jan-2024", "/day/{id}"),
        ("/at/2024-01-01T10:00:00Z", "/at/{id}"),
        ("/order-12345678/x", "/{id}/x"),
        ("/v1/users", "/v1/users"),
        ("/facade/added", "/facade/added"),
        ("/search?q=secret", "/search"),
        ("/frag#part", "/frag"),
        ("//x", "//x"),
        ("/static/app.js", "/static/app.js"),
    ] {
        assert_eq!(text(path, 0), route, "{path}");
    }
}

#[test]
fn identifiers_are_told_from_words() {
    for word in [
        "v1",
        "v10",
        "oauth2",
        "s3",
        "utf8",
        "utf-8",
        "h264",
        "mp4",
        "ipv6",
        "2fa",
        "3d",
        "web3",
        "k8s",
        "i18n",
        "area-51",
        "covid-19",
        "sha256",
        "base64",
        "x509",
        "Base64Encode",
        "OAuth2Callback",
        "getUserById",
        "v1.2.3",
        "jquery-3.6.0.min.js",
        "app.js",
        "robots.txt",
        ".well-known",
        "openid-configuration",
        "facade",
        "deadbeef",
        "summer-sale",
        "a",
        "index.html",
        "user_profile",
        "application-configuration-properties",
        "~ann",
        "@ann",
        "*",
        "..",
        "-",
    ] {
        assert!(!Segment::of(word.as_bytes()).is_masked(), "{word}");
    }
    for identifier in [
        "0",
        "404",
        "2024",
        "20240131",
        "2024-01-31",
        "31-Jan-2024",
        "1.5",
        "12:30",
        "550e8400-e29b-41d4-a716-446655440000",
        "550E8400E29B41D4A716446655440000",
        "da39a3ee",
        "deadbeefdeadbeef",
        "summer-sale-2024-x7f3",
        "order-12345678",
        "user1234",
        "item_00042_b",
        "eyJhbGciOiJIUzI1NiJ9",
        "VGhpcyBpcyBhIHRlc3QgMTIz",
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "hello%20world",
        "caf%C3%A9",
        "%7Bid%7D",
        "app.3f9c2b1a77.js",
        "2024-W05",
    ] {
        assert!(Segment::of(identifier.as_bytes()).is_masked(), "{identifier}");
    }
    assert!(Segment::of("é".as_bytes()).is_masked(), "what should have been encoded");
}

#[test]
fn the_longest_segments_are_counted_without_overflow() {
    let longest = "a1B%".repeat(400);
    for path in [format!("/{longest}"), format!("/x/{}", "é".repeat(600)), "/".repeat(600), "A/".repeat(600)]
    {
        let (route, segments) = read(path.as_bytes());
        let mut named = Vec::new();
        each_segment(path.as_bytes(), |_, _, segment| named.push(segment));
        let read: Vec<_> = (0..segments.len()).map(|at| segments.get(at)).collect();
        assert!(read.len() <= SEGMENTS);
        // The kernel's steps are shorter where slashes are, so it may read less; what it reads, it reads the same.
        if read.len() < SEGMENTS {
            assert_eq!(
                read.iter().map(|s| s.is_masked()).collect::<Vec<_>>(),
                named.iter().map(|s| s.is_masked()).collect::<Vec<_>>()
            );
        }
        assert_ne!(route, OTHER);
    }
}

#[test]
fn folded_segments_are_stars() {
    assert_eq!(text("/users/ann/posts", 0b100), "/users/{*}/posts");
    assert_eq!(outcome("/users/ann/posts", 0b100).route, outcome("/users/bob/posts", 0b100).route);
    assert_ne!(outcome("/users/ann/posts", 0b100).route, outcome("/users/ann/posts", 0).route);
    assert_eq!(outcome("/users/ann", 0).route, read(b"/users/ann").0);
    // No rule folds these.
    assert_eq!(outcome("/users/17/", 0b1101).collapsed, 0);
}

/// Rules in memory.
#[derive(Default)]
struct Rules {
    collapsed: HashSet<u64>,
    kept: HashSet<u64>,
}

impl Collapse for Rules {
    fn is_collapsed(&mut self, parent: u64) -> bool {
        self.collapsed.contains(&parent)
    }
    fn is_kept(&mut self, child: u64) -> bool {
        self.kept.contains(&child)
    }
}

#[test]
fn a_rule_folds_all_children_but_the_kept_ones_of_its_workload() {
    let place = |path: &str| outcome(path, 0).route;
    let mut rules = Rules::default();
    rules.collapsed.insert(key(7, place("/users")));
    rules.kept.insert(key(7, place("/users/me")));
    let mut under = |workload: u64, path: &str| {
        let mut outcome = Outcome::EMPTY;
        outcome.collapse(&read(path.as_bytes()).1, workload, &mut rules);
        text(path, outcome.collapsed)
    };
    for (path, route) in [
        ("/users/ann", "/users/{*}"),
        ("/users/ann/posts/3", "/users/{*}/posts/{id}"),
        ("/users/me", "/users/me"),
        ("/users/me/posts", "/users/me/posts"),
        ("/users/17", "/users/{id}"),
        ("/users/", "/users/"),
        ("/users", "/users"),
        ("/items/ann", "/items/ann"),
    ] {
        assert_eq!(under(7, path), route);
        assert!(!under(8, path).contains('*'), "{path} of another workload");
    }
}

#[test]
fn the_summary_knows_every_rule() {
    let mut summary = Summary::EMPTY;
    assert!((0..1000).all(|n| !summary.may_collapse(key(n, ROOT))));
    for n in 0..100 {
        summary.collapse(key(n, ROOT));
    }
    assert!((0..100).all(|n| summary.may_collapse(key(n, ROOT))));
    let wrong = (1000..11_000).filter(|&n| summary.may_collapse(key(n, ROOT))).count();
    assert!(wrong < 400, "{wrong} of 10,000 looked up for nothing");
}

/// `/api/bookings/{id}`, `/api/{x}` and `/files/{path:*}`, by hand.
struct ByHand(HashMap<Step, u64>);

impl Patterns for ByHand {
    fn state(&mut self, state: u64) -> State {
        match state {
            3 => State { any: 5, ..State::default() },
            4 => State { any: 6, accept: 45, ..State::default() },
            5 => State { accept: 45, ..State::default() },
            6 => State { accept: 46, ..State::default() },
            7 => State { rest: 47, ..State::default() },
            _ => State::default(),
        }
    }
    fn step(&mut self, step: &Step) -> u64 {
        self.0.get(step).copied().unwrap_or(0)
    }
}

#[test]
fn patterns_match_whole_paths() {
    let steps = [(START, "", 2), (2, "api", 3), (3, "bookings", 4), (2, "files", 7)];
    let steps =
        steps.map(|(state, text, to)| (Step { state, literal: Segment::of(text.as_bytes()).literal() }, to));
    let mut patterns = ByHand(steps.into());
    for (path, route) in [
        ("/api/bookings/17", 46),
        ("/api/bookings/ann", 46),
        ("/api/bookings", 45),
        ("/api/17", 45),
        ("/api/", 0),
        ("/api", 0),
        ("/api/bookings/17/x", 0),
        ("/api/bookings/", 0),
        ("/files", 0),
        ("/files/", 47),
        ("/files/a/b/17?c", 47),
        ("/", 0),
        ("", 0),
        ("*", 0),
    ] {
        assert_eq!(matching(&read(path.as_bytes()).1, &mut patterns), route, "{path}");
    }
    assert_ne!(pattern("/a/{b}"), pattern("/a/{c}"));
    assert_ne!(pattern("/a"), read(b"/a").0);
}

proptest::proptest! {
    #[test]
    fn same_text_is_same_fingerprint(
        a in "(/[a-f0-9x-]{0,9}){0,3}", b in "(/[a-f0-9x-]{0,9}){0,3}", rules_a in 0..16_u64, rules_b in 0..16_u64,
    ) {
        let (under_a, under_b) = (outcome(&a, rules_a), outcome(&b, rules_b));
        proptest::prop_assert_eq!(
            text(&a, under_a.collapsed) == text(&b, under_b.collapsed), under_a.route == under_b.route, "{} {}", a, b
        );
        proptest::prop_assert_eq!(text(&a, 0) == text(&b, 0), read(a.as_bytes()).0 == read(b.as_bytes()).0, "{} {}", a, b);
        proptest::prop_assert_eq!(outcome(&a, 0).route, read(a.as_bytes()).0);
    }

    #[test]
    fn any_bytes_do(path in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600), collapsed: u64) {
        let mut len = 0;
        describe(&path, collapsed, |part| len += part.len());
        proptest::prop_assert!(len <= 4 * path.len() + 4);
        let (_, segments) = read(&path);
        let masked = (0..segments.len()).fold(0, |all, at| all | u64::from(segments.get(at).is_masked()) << at);
        proptest::prop_assert_eq!(segments.masked(), masked);
        let mut at = 0;
        each_segment(&path, |_, bytes, segment| {
            // The last one that the kernel reads may be cut.
            if at + 1 < segments.len() {
                assert_eq!(segments.get(at), segment, "{bytes:?}");
            }
            at += 1;
        });
    }
}
