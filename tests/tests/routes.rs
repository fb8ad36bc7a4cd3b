//! Routes that are learned: whatever paths a server is asked for, its series stay few, its known routes stay as they are, and
//! every request is counted, to the request.
#![allow(clippy::print_stdout, reason = "how many series there are is worth seeing")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use live_tests::{Agent, Nginx, PATIENCE, Page, Pair, Proc, comm, listener};

/// The server's name.
const SERVICE: &str = "routes-nginx";

/// A client that keeps its connection.
struct Client {
    stream: TcpStream,
    host: String,
}

impl Client {
    fn of(nginx: &Nginx) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", nginx.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, host: nginx.address() }
    }

    fn get(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        self.stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 1024];
        let mut len = 0;
        while !answer[..len].ends_with(b"\r\n\r\nok") {
            let read = self.stream.read(&mut answer[len..]).unwrap();
            assert!(read > 0, "nginx hung up");
            len += read;
        }
    }
}

/// Letters only, so that no mask takes it, and another for each number.
fn word(mut n: u64) -> String {
    let mut word = "w".to_owned();
    while n > 0 {
        word.push(char::from(b'g' + (n % 20) as u8));
        n /= 20;
    }
    word
}

/// Path number `n`, at one of five depths; one in fifty is longer than a sample.
fn random(n: u64) -> String {
    let scrambled = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut path = String::new();
    for depth in 0..=n % 5 {
        path += "/";
        path += &word(scrambled >> (7 * depth) | n);
    }
    if n.is_multiple_of(50) {
        path += &"x".repeat(150);
    }
    path + &format!("/{}?q={n}", word(n))
}

const KNOWN: [&str; 20] = [
    "/",
    "/health",
    "/login",
    "/static/app.js",
    "/static/site.css",
    "/api/v1/users",
    "/api/v1/users/{id}",
    "/api/v1/users/{id}/posts",
    "/api/v1/users/me",
    "/api/v1/orders",
    "/api/v1/orders/{id}",
    "/api/v1/orders/{id}/items/{id}",
    "/api/v2/users",
    "/api/v2/orders",
    "/api/v2/search",
    "/docs/",
    "/docs/start",
    "/docs/reference/api",
    "/admin/users",
    "/admin/settings",
];

/// A path of a known route.
fn known(route: &str, n: u64) -> String {
    route.replace("{id}", &n.to_string())
}

/// What nginx has served, by route.
fn by_route(page: &Page) -> BTreeMap<String, f64> {
    let mut routes = BTreeMap::new();
    for sample in page.select("http_requests_total", &[("service", SERVICE)]) {
        *routes.entry(sample.labels["route"].clone()).or_insert(0.0) += sample.value;
    }
    routes
}

/// Each series' value, for what must not fall.
fn assert_nothing_fell(before: &Page, after: &Page) {
    let values = |page: &Page| -> BTreeMap<String, f64> {
        let samples = page.select("http_requests_total", &[("service", SERVICE)]);
        samples.map(|sample| (format!("{:?}", sample.labels), sample.value)).collect()
    };
    let after = values(after);
    for (series, value) in values(before) {
        let now = after.get(&series).unwrap_or_else(|| panic!("{series} is gone"));
        assert!(*now >= value, "{series} fell from {value} to {now}");
    }
}

/// F22.
#[test]
fn two_hundred_thousand_random_paths_leave_the_known_routes_intact() {
    const RANDOM: u64 = 200_000;
    const CLIENTS: u64 = 4;
    const WARM: u64 = 20;
    let nginx = Nginx::named(SERVICE, "location / { return 200 'ok'; }");
    let agent = Agent::start();
    let mut client = Client::of(&nginx);
    for route in KNOWN {
        (0..WARM).for_each(|n| client.get(&known(route, n)));
    }
    let mut asked = WARM * KNOWN.len() as u64;
    let page = agent.expect("http_requests_total", &[("service", SERVICE)], asked as f64);
    for route in KNOWN {
        assert_eq!(by_route(&page).get(route), Some(&(WARM as f64)), "{route}");
    }

    // One request in eleven is for a known route.
    let mut each = WARM;
    let done = AtomicBool::new(false);
    let mut last = page;
    let last = thread::scope(|scope| {
        let load: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let mut client = Client::of(&nginx);
                scope.spawn(move || {
                    for n in (number..RANDOM).step_by(CLIENTS as usize) {
                        client.get(&random(n));
                        if n % 10 == 0 {
                            let n = n / 10;
                            client.get(&known(KNOWN[(n % KNOWN.len() as u64) as usize], n));
                        }
                    }
                })
            })
            .collect();
        let done = &done;
        let agent = &agent;
        let watch = scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let page = agent.page();
                assert!(page.text.len() < 4 << 20, "the page has {} bytes", page.text.len());
                assert_nothing_fell(&last, &page);
                last = page;
                thread::sleep(Duration::from_millis(300));
            }
            last
        });
        for client in load {
            client.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    asked += RANDOM + RANDOM / 10;
    each += RANDOM / 10 / KNOWN.len() as u64;

    let page = agent.expect("http_requests_total", &[("service", SERVICE)], asked as f64);
    assert_nothing_fell(&last, &page);
    let routes = by_route(&page);
    for route in KNOWN {
        assert_eq!(routes.get(route), Some(&(each as f64)), "{route}");
    }
    let series = page.select("http_requests_total", &[]).count();
    let other = routes.get("other").copied().unwrap_or(0.0);
    println!(
        "{series} series, {} routes, {} bytes, {other} requests are other, resident {} MiB",
        routes.len(),
        page.text.len(),
        Proc::of(agent.pid()).resident() / 1_048_576.0
    );
    assert!(series < 600, "{series} series:\n{}", page.lines(&["http_requests_total"]));
    assert!(page.text.len() < 4 << 20, "the page has {} bytes", page.text.len());
    assert!(Proc::of(agent.pid()).resident() < 64.0 * 1_048_576.0);
    assert_eq!(page.losses(), [""; 0]);

    // Twenty that nobody asked for before: where nothing was folded they get their names.
    for n in 0..20 {
        (0..5).for_each(|_| client.get(&format!("/api/v3/{}", word(n))));
    }
    client.get("/neverseen");
    let page = agent.expect("http_requests_total", &[("service", SERVICE)], (asked + 101) as f64);
    for n in 0..20 {
        assert_eq!(by_route(&page).get(&format!("/api/v3/{}", word(n))), Some(&5.0));
    }
    assert_eq!(by_route(&page).get("/neverseen"), None, "the root is folded");
    assert_nothing_fell(&last, &page);
    agent.expect_no_loss("http");
}

#[test]
fn a_place_that_is_folded_under_load_loses_nothing_and_folds_no_other_service() {
    const NAMES: u64 = 300;
    const ROUNDS: u64 = 40;
    let nginx = Nginx::named(SERVICE, "location / { return 200 'ok'; }");
    let agent = Agent::start();
    let sent = AtomicU64::new(0);
    let answered = AtomicU64::new(0);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut client = Client::of(&nginx);
            let mut get = |path: &str| {
                sent.fetch_add(1, Ordering::SeqCst);
                client.get(path);
                answered.fetch_add(1, Ordering::SeqCst);
            };
            for round in 0..ROUNDS {
                for n in 0..NAMES {
                    get(&format!("/users/{}/posts", word(n)));
                    get("/users/me/posts");
                    get(&format!("/users/{}/posts", round * NAMES + n));
                }
                thread::sleep(Duration::from_millis(25));
            }
        });
        // Exact at every scrape: as many as were answered before, and no more than were sent by its end.
        while !load.is_finished() {
            let before = answered.load(Ordering::SeqCst);
            let page = agent.page();
            let counted = page.sum("http_requests_total", &[("service", SERVICE)]) as u64;
            // The last one's program may still be under way in the kernel.
            assert!(counted + 1 >= before && counted <= sent.load(Ordering::SeqCst), "{counted}, {before}");
        }
    });
    let all = NAMES * ROUNDS;
    let page = agent.expect("http_requests_total", &[("service", SERVICE)], (3 * all) as f64);
    let routes = by_route(&page);
    assert_eq!(routes["/users/me/posts"], all as f64, "it has a real share, and stays");
    assert_eq!(routes["/users/{id}/posts"], all as f64);
    let folded = routes["/users/{*}/posts"];
    // The first scrapes may have shown up to fifty by name.
    assert!(folded >= (all / 2) as f64, "{routes:?}");
    assert!(routes.len() <= 53, "{routes:?}");

    // On a connection of its own as well, and only nginx'.
    Client::of(&nginx).get("/users/zoe/posts");
    let (listener, _) = listener();
    let mut pair = Pair::open(&listener);
    pair.exchange(b"GET /users/zoe/posts HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    agent.expect_all(&[
        ("http_requests_total", &[("service", SERVICE), ("route", "/users/{*}/posts")], folded + 1.0),
        ("http_requests_total", &[("service", &comm()), ("route", "/users/zoe/posts")], 1.0),
    ]);
    assert_eq!(page.losses(), [""; 0]);
}

#[test]
fn the_users_own_routes_win() {
    let nginx = Nginx::named(SERVICE, "location / { return 200 'ok'; }");
    let agent = Agent::with(
        "probes:\n  http:\n    max_children: 5\n    routes:\n      - /api/bookings/{ref}\n      - /api/bookings/2024\n      \
         - /api/{kind}/{ref}/comments\n      - /files/{path:*}\n      - /v1/{name}\n",
    );
    let mut client = Client::of(&nginx);
    for (path, route) in [
        ("/api/bookings/17", "/api/bookings/{ref}"),
        ("/api/bookings/ann", "/api/bookings/{ref}"),
        ("/api/bookings/2024", "/api/bookings/2024"),
        ("/api/bookings/2024/comments?all=1", "/api/{kind}/{ref}/comments"),
        ("/api/bookings/17/x", "/api/bookings/{id}/x"),
        ("/files/a/b/c/17", "/files/{path:*}"),
        ("/files/", "/files/{path:*}"),
        ("/files", "/files"),
        ("/v1/me", "/v1/{name}"),
        ("/v2/me", "/v2/me"),
    ] {
        let before = by_route(&agent.page()).get(route).copied().unwrap_or(0.0);
        client.get(path);
        agent.expect("http_requests_total", &[("service", SERVICE), ("route", route)], before + 1.0);
    }
    // A crowd of what a pattern takes is none.
    (0..100).for_each(|n| client.get(&format!("/v1/{}", word(n))));
    let page = agent.expect("http_requests_total", &[("service", SERVICE), ("route", "/v1/{name}")], 101.0);
    assert!(!page.text.contains("{*}"), "{}", page.lines(&["{*}"]));
    // Six of what none takes are, with this limit; and the patterns go on.
    (0..100).for_each(|n| client.get(&format!("/v3/{}", word(n))));
    client.get("/v1/you");
    let page = agent.expect_all(&[
        ("http_requests_total", &[("service", SERVICE)], 211.0),
        ("http_requests_total", &[("service", SERVICE), ("route", "/v1/{name}")], 102.0),
    ]);
    assert!(page.sum("http_requests_total", &[("route", "/v3/{*}")]) > 0.0, "{:?}", by_route(&page));
    assert!(by_route(&page).len() < 20, "{:?}", by_route(&page));
}
