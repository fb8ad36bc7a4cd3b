//! Metrics that the user derives from traffic, by the example that is deployed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::fs;
use std::path::Path;

use live_tests::{Agent, Labels, Nginx, curl, wrk};

const API: &str = r#"
location /api/bookings/ { if ($request_method = POST) { return 201 "booked\n"; } return 200 "a booking\n"; }
location = /api/bookings/castle { return 409 "no castle left\n"; }
location / { return 200 "something else\n"; }
"#;

fn example() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/booking.yaml")).unwrap()
}

#[test]
fn bookings_are_counted_by_what_they_are_for() {
    let nginx = Nginx::start(API);
    let agent = Agent::with(&example());
    let post = |path: &str, times: usize| {
        let url = nginx.url(path);
        let mut arguments = vec!["-d", "for=two"];
        arguments.extend(vec![url.as_str(); times]);
        curl(&arguments);
    };
    post("/api/bookings/hotel", 30);
    post("/api/bookings/flight", 20);
    post("/api/bookings/castle", 5);
    // What was booked is only looked at here, and this is not what is meant.
    curl(&[&nginx.url("/api/bookings/hotel"), &nginx.url("/api/bookings/hotel/17"), &nginx.url("/hotel")]);
    post("/api/bookings/hotel/18", 1);
    let created = |kind| [("service", "nginx"), ("service_type", kind), ("status", "confirmed")];
    let (hotel, flight) = (created("hotel"), created("flight"));
    let refused: Labels<'_> = &[("service", "nginx"), ("service_type", "castle"), ("status", "409")];
    let page = agent.expect_all(&[
        ("bookings_created_total", &hotel, 30.0),
        ("bookings_created_total", &flight, 20.0),
        ("bookings_refused_total", refused, 5.0),
    ]);
    assert_eq!(page.sum("bookings_created_total", &[]), 50.0);
    assert_eq!(page.sum("bookings_refused_total", &[]), 5.0);
    assert!(page.lines(&["bookings_created_total", "# HELP"]).contains("Bookings that were made."));
}

#[test]
fn clients_are_told_apart_by_their_addresses() {
    const CLIENTS: u32 = 200;
    let nginx = Nginx::start(API);
    let agent = Agent::with(&example());
    let from = |n: u32, path: &str| {
        let address = format!("127.1.{}.{}", n / 100, n % 100 + 1);
        curl(&["--interface", &address, &nginx.url(path)]);
    };
    // One of them comes often, and each of the others once: also before the agent knows the route.
    wrk(&nginx.url("/api/bookings/hotel/17"), 2000);
    for n in 0..CLIENTS - 1 {
        from(n, if n % 2 == 0 { "/api/bookings/hotel" } else { "/api/search" });
        from(n + 1000, "/not-the-api");
    }
    let users = || agent.page().sum("active_users", &[("service", "nginx")]);
    let found = users();
    // The error is 2.3 %; the addresses are always the same.
    assert!((found - f64::from(CLIENTS)).abs() <= 0.05 * f64::from(CLIENTS), "{found} of {CLIENTS}");
    for n in 0..CLIENTS - 1 {
        from(n, "/api/bookings/flight");
    }
    assert_eq!(users(), found, "they were there before");
}
