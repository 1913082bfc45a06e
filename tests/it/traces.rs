//! Traces that the real program exports: the tests' own collector receives them.

use std::{
    env,
    process::{Command, Stdio},
};

use crate::service::{Host, Keeper, Service, skip};

#[cfg(feature = "otel")]
mod collected {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicBool, Ordering::SeqCst},
        time::{Duration, Instant},
    };

    use opentelemetry_proto::tonic::{
        collector::trace::v1::ExportTraceServiceRequest,
        common::v1::{KeyValue, any_value::Value},
        trace::v1::span::SpanKind,
    };
    use prost::Message;

    use crate::{
        receivers::{Fickle, Receiver, Reply, reply},
        service::{
            Host, Keeper, OTHER_SECRET, Post, SECRET, Service, deletion, eventually, milliseconds,
            on_each_keeper, post, user,
        },
    };

    on_each_keeper!(
        a_webhook_is_a_span_that_says_how_it_was_answered_and_how_often_it_came,
        a_trace_goes_on_through_queue_and_outbox_and_in_other_processes,
        an_inline_service_that_parks_a_delivery_keeps_its_trace,
        a_collector_that_cannot_be_reached_harms_nothing,
        without_somewhere_to_export_to_nothing_is_traced,
    );

    /// A name that appears nowhere else.
    const NAME: &str = "Quillhammer";

    /// The user agent of Svix.
    const AGENT: &str = "user-agent: Svix-Webhooks/1.84.0\r\n";

    const OK: i32 = 0;
    const ERROR: i32 = 2;

    /// A collector of traces.
    struct Collector(Receiver);

    /// The parts of a span that the tests check. All values are converted to text.
    #[derive(Clone, Debug)]
    struct Span {
        name: String,
        kind: SpanKind,
        trace: String,
        id: String,
        parent: String,
        links: Vec<(String, String)>,
        attributes: BTreeMap<String, String>,
        status: i32,
        service: String,
    }

    impl Span {
        fn get(&self, name: &str) -> &str {
            self.attributes.get(name).map_or("", String::as_str)
        }

        fn context(&self) -> String {
            format!("00-{}-{}-01", self.trace, self.id)
        }
    }

    impl Collector {
        fn start() -> Self {
            Self(Receiver::start(|_| reply(200, "")))
        }

        /// Let the program export to this collector with a short delay.
        fn collect_from(&self, host: &mut Host) {
            host.set("OTEL_EXPORTER_OTLP_ENDPOINT", &self.0.url);
            host.set("OTEL_BSP_SCHEDULE_DELAY", "50");
        }

        fn spans(&self) -> Vec<Span> {
            let mut spans = Vec::new();
            for received in self.0.received() {
                assert_eq!((received.method.as_str(), received.path.as_str()), ("POST", "/v1/traces"));
                assert_eq!(received.header("content-type"), "application/x-protobuf");
                let export = ExportTraceServiceRequest::decode(received.body).unwrap();
                for resource in export.resource_spans {
                    let about = texts(&resource.resource.unwrap_or_default().attributes);
                    for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                        spans.push(Span {
                            kind: span.kind(),
                            name: span.name,
                            trace: hex::encode(span.trace_id),
                            id: hex::encode(span.span_id),
                            parent: hex::encode(span.parent_span_id),
                            links: span
                                .links
                                .iter()
                                .map(|link| (hex::encode(&link.trace_id), hex::encode(&link.span_id)))
                                .collect(),
                            attributes: texts(&span.attributes),
                            status: span.status.map_or(OK, |status| status.code),
                            service: about["service.name"].clone(),
                        });
                    }
                }
            }
            spans
        }

        /// Wait for the only span that meets this condition.
        fn one(&self, what: &str, is_it: impl Fn(&Span) -> bool) -> Span {
            let mut found = Vec::new();
            eventually(what, || {
                found = self.spans().into_iter().filter(|span| is_it(span)).collect();
                !found.is_empty()
            });
            assert_eq!(found.len(), 1, "{what}: {found:#?}");
            found.remove(0)
        }

        /// Assert that no export contains any of these texts.
        fn assert_never_told(&self, secrets: &[&str]) {
            for received in self.0.received() {
                let text = String::from_utf8_lossy(&received.body);
                for secret in secrets {
                    assert!(!text.contains(secret), "{secret} was exported: {text}");
                }
            }
        }
    }

    fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
        let text = |value: &KeyValue| match value.value.clone().and_then(|value| value.value) {
            Some(Value::StringValue(text)) => text,
            Some(Value::IntValue(number)) => number.to_string(),
            other => panic!("{other:?}"),
        };
        attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
    }

    fn created(id: &str) -> Post {
        Post { more_headers: AGENT.to_owned(), ..post(&user("user.created", id, milliseconds(), NAME)) }
    }

    fn a_webhook_is_a_span_that_says_how_it_was_answered_and_how_often_it_came(host: &mut Host) {
        let collector = Collector::start();
        collector.collect_from(host);
        let service = host.serve();
        let nth = |delivery: &Post, status: &str, resends: &str| {
            collector.one(&format!("{status} {resends} of {}", delivery.id), |span| {
                span.get("messaging.message.id") == delivery.id
                    && span.get("http.response.status_code") == status
                    && span.get("http.request.resend_count") == resends
            })
        };

        let mut delivery = created("user_1");
        let theirs = "4bf92f3577b34da6a3ce929d0e0e4736";
        delivery.more_headers = format!("{AGENT}traceparent: 00-{theirs}-00f067aa0ba902b7-01\r\n");
        assert_eq!(service.post(&delivery).word(), "applied");
        let span = nth(&delivery, "200", "");
        assert_eq!(
            (span.kind, span.name.as_str(), span.service.as_str()),
            (SpanKind::Server, "POST /webhooks/clerk", "clerk-sync")
        );
        let expected = [
            ("clerk.event.type", "user.created"),
            ("clerk_sync.outcome", "applied"),
            ("http.request.method", "POST"),
            ("http.response.status_code", "200"),
            ("http.route", "/webhooks/clerk"),
            ("messaging.message.id", delivery.id.as_str()),
            ("network.protocol.version", "1.1"),
            ("server.address", "test"),
            ("url.path", "/webhooks/clerk"),
            ("url.scheme", "http"),
            ("user_agent.original", "Svix-Webhooks/1.84.0"),
        ];
        let told: Vec<(&str, &str)> =
            span.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(told, expected);
        assert_eq!((span.status, span.parent.as_str()), (OK, ""));
        // The incoming trace is linked, not continued.
        assert_ne!(span.trace, theirs);
        assert_eq!(span.links, [(theirs.to_owned(), "00f067aa0ba902b7".to_owned())]);

        for resends in ["1", "2"] {
            assert_eq!(service.post(&delivery).word(), "duplicate");
            assert_eq!(nth(&delivery, "200", resends).get("clerk_sync.outcome"), "duplicate");
        }

        // A delivery that Svix sends again after an error.
        host.sql("ALTER TABLE entity_versions RENAME TO away");
        let again = created("user_2");
        assert_eq!(service.post(&again).status, 503);
        let failed = nth(&again, "503", "");
        assert_eq!((failed.status, failed.get("error.type")), (ERROR, "database_unavailable"));
        host.sql("ALTER TABLE away RENAME TO entity_versions");
        assert_eq!(service.post(&again).word(), "applied");
        assert_eq!(nth(&again, "200", "1").status, OK);

        // A request without a valid signature is traced only with its answer.
        let mut forged = created("user_3");
        forged.secret = OTHER_SECRET;
        forged.more_headers = delivery.more_headers.replace("Svix-Webhooks", NAME);
        assert_eq!(service.post(&forged).status, 400);
        let refused = collector.one("the forged one", |span| span.get("http.response.status_code") == "400");
        assert_eq!((refused.status, refused.get("clerk_sync.reason")), (OK, "invalid_signature"));
        assert_eq!((refused.get("user_agent.original"), refused.get("messaging.message.id")), ("", ""));
        assert_eq!(refused.links, []);
        service.stop();
        collector.assert_never_told(&[NAME, "Lovelace", "user_1", "@example.com", "192.0.2.77", SECRET]);
    }

    fn a_trace_goes_on_through_queue_and_outbox_and_in_other_processes(host: &mut Host) {
        let collector = Collector::start();
        collector.collect_from(host);
        let taken = AtomicBool::new(false);
        let sink = Receiver::start(move |_| {
            let status = if taken.swap(true, SeqCst) { 200 } else { 503 };
            reply(status, "")
        });
        let file = format!(
            "[[sink]]\nname = \"crm\"\nkind = \"webhook\"\nurl = \"{}/hooks/k3y-in-the-path\"\nsigning_secret_env = \"CRM_SECRET\"\n",
            sink.url
        );
        host.write("clerk-sync.toml", &file);
        host.set("CRM_SECRET", SECRET);
        host.set("PROCESSING", "queue");
        let receiving = host.serve_with(&["--no-worker"]);
        let delivery = created("user_1");
        assert_eq!(service_word(&receiving, &delivery), "queued");

        let named = |name: &str| collector.one(name, |span| span.name == name);
        let server = named("POST /webhooks/clerk");
        let queued = named("send webhook_queue");
        assert_eq!((queued.kind, &queued.parent), (SpanKind::Producer, &server.id));
        assert_eq!(host.value("SELECT trace_context FROM webhook_queue"), queued.context());
        // The receiving process stops before a worker processes the delivery.
        receiving.stop();

        let worker = host.work();
        let handled = named("process webhook_queue");
        assert_eq!((handled.kind, &handled.parent), (SpanKind::Consumer, &queued.id));
        assert_eq!(handled.links, [(queued.trace.clone(), queued.id.clone())]);
        for (name, value) in [
            ("messaging.operation.type", "process"),
            ("messaging.destination.name", "webhook_queue"),
            ("messaging.message.id", delivery.id.as_str()),
            ("clerk.event.type", "user.created"),
            ("clerk_sync.attempt", "1"),
            ("clerk_sync.outcome", "applied"),
        ] {
            assert_eq!(handled.get(name), value, "{name}");
        }
        let told = named("send outbox/crm");
        assert_eq!((told.kind, &told.parent), (SpanKind::Producer, &handled.id));
        assert_eq!(host.value("SELECT trace_context FROM outbox"), told.context());

        // The sink fails at the first attempt.
        let attempt = |number: &str| {
            let span = collector.one(&format!("attempt {number}"), |span| {
                span.name == "process outbox/crm" && span.get("clerk_sync.attempt") == number
            });
            assert_eq!((span.kind, &span.parent), (SpanKind::Consumer, &told.id));
            let request = collector.one(&format!("request {number}"), |request| request.parent == span.id);
            assert_eq!((request.kind, request.name.as_str()), (SpanKind::Client, "POST"));
            assert_eq!(request.get("server.address"), "127.0.0.1");
            (span, request)
        };
        let ((first, first_request), (second, second_request)) = (attempt("1"), attempt("2"));
        assert_eq!((first.status, first_request.status), (ERROR, ERROR));
        assert_eq!(
            (first_request.get("error.type"), first_request.get("http.request.resend_count")),
            ("503", "")
        );
        assert_eq!((second.get("clerk_sync.outcome"), second_request.status), ("delivered", OK));
        assert_eq!(second_request.get("http.request.resend_count"), "1");
        let requests = sink.received();
        let parents: Vec<&str> = requests.iter().map(|request| request.header("traceparent")).collect();
        assert_eq!(parents, [first_request.context(), second_request.context()]);

        // The trace headers do not change the signature.
        let verifier = svix::webhooks::Webhook::new(SECRET).unwrap();
        verifier.verify(&requests[1].body, &requests[1].headers).unwrap();

        let all = collector.spans();
        assert_eq!(all.len(), 8, "{all:#?}");
        assert!(all.iter().all(|span| span.trace == server.trace), "one trace: {all:#?}");

        // The same for an erasure.
        assert_eq!(host.count("webhook_queue"), 0);
        let receiving = host.serve_with(&["--no-worker"]);
        assert_eq!(service_word(&receiving, &post(&deletion("user_1", milliseconds()))), "queued");
        let erased = collector.one("the erasure's message", |span| {
            span.name == "send outbox/crm" && span.get("clerk.event.type") == "user.deleted"
        });
        assert_ne!(erased.trace, server.trace);
        collector.one("its delivery", |span| span.name == "process outbox/crm" && span.parent == erased.id);
        receiving.stop();
        worker.stop();
        collector.assert_never_told(&[NAME, "Lovelace", "user_1", "@example.com", SECRET, "k3y-in-the-path"]);
    }

    fn an_inline_service_that_parks_a_delivery_keeps_its_trace(host: &mut Host) {
        let collector = Collector::start();
        collector.collect_from(host);
        let service = host.serve();
        host.refuse_first_name(NAME);
        let delivery = created("user_1");
        assert_eq!(service_word(&service, &delivery), "parked");
        let parked = collector.one("put into the queue", |span| span.name == "send webhook_queue");
        let server = collector.one("the request", |span| span.kind == SpanKind::Server);
        assert_eq!(parked.parent, server.id);
        assert_eq!(host.value("SELECT trace_context FROM webhook_queue"), parked.context());

        // A delivery that is parked again belongs to the request that brought it again.
        assert_eq!(service_word(&service, &delivery), "parked");
        let server = collector.one("the second request", |span| span.get("http.request.resend_count") == "1");
        let parked = collector
            .one("put there again", |span| span.kind == SpanKind::Producer && span.parent == server.id);
        assert_eq!(host.value("SELECT trace_context FROM webhook_queue"), parked.context());
        host.allow_first_names();
        let handled = collector.one("applied", |span| span.get("clerk_sync.outcome") == "applied");
        assert_eq!((&handled.trace, &handled.parent), (&server.trace, &parked.id));
        service.stop();
        collector.assert_never_told(&[NAME, "Lovelace", "@example.com"]);
    }

    fn a_collector_that_cannot_be_reached_harms_nothing(host: &mut Host) {
        let silent = Receiver::start(|_| Reply::Silence);
        let closed = Fickle::closed(SECRET);
        let wrong = Receiver::start(|_| reply(404, ""));
        host.set("OTEL_BSP_SCHEDULE_DELAY", "50");
        // A queue for fewer spans than the test sends: the rest is dropped.
        host.set("OTEL_BSP_MAX_QUEUE_SIZE", "16");
        host.set("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16");
        let cases = [
            (&closed.url, Some("200")),
            (&wrong.url, Some("200")),
            (&silent.url, Some("200")),
            // At the shutdown, an export is pending that would wait for ten seconds.
            (&silent.url, None),
        ];
        for (number, (endpoint, timeout)) in cases.into_iter().enumerate() {
            host.set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
            match timeout {
                Some(timeout) => host.set("OTEL_EXPORTER_OTLP_TIMEOUT", timeout),
                None => host.unset("OTEL_EXPORTER_OTLP_TIMEOUT"),
            }
            let asked_before = silent.received().len();
            let mut service = host.serve();
            let began = Instant::now();
            for event in 0..40 {
                let delivery = created(&format!("user_{number}_{event}"));
                let answer = service.post(&delivery);
                assert_eq!((answer.status, answer.word().as_str()), (200, "applied"));
            }
            assert!(began.elapsed() < Duration::from_secs(15), "answers took {:?}", began.elapsed());
            let complaints = || service.log().matches("traces cannot be exported").count();
            if timeout.is_some() {
                eventually("the log says so", || complaints() == 1);
            } else {
                eventually("it is asked", || silent.received().len() > asked_before);
            }
            assert_eq!(service.post(&created(&format!("user_{number}_last"))).word(), "applied");
            service.terminate();
            let asked = Instant::now();
            let status = service.wait(Duration::from_secs(30));
            assert_eq!(status.code(), Some(0), "{}", service.log());
            assert!(asked.elapsed() < Duration::from_secs(8), "the shutdown took {:?}", asked.elapsed());
            let complaints = service.log().matches("traces cannot be exported").count();
            assert!(complaints <= 1, "{}", service.log());
            assert!(!service.log().contains(NAME));
        }
    }

    fn without_somewhere_to_export_to_nothing_is_traced(host: &mut Host) {
        let collector = Collector::start();
        host.set("PROCESSING", "queue");
        let mut sent = 0;
        let mut kept = |host: &Host, complaint: Option<&str>| {
            let service = host.serve_with(&["--no-worker"]);
            sent += 1;
            let delivery = created(&format!("user_{sent}"));
            assert_eq!(service_word(&service, &delivery), "queued");
            let log = service.log();
            match complaint {
                Some(complaint) => assert!(log.contains(complaint), "{log}"),
                None => assert!(!log.contains("nothing is traced"), "{log}"),
            }
            service.stop();
            let context =
                format!("SELECT trace_context FROM webhook_queue WHERE svix_id = '{}'", delivery.id);
            host.value(&context)
        };
        assert_eq!(kept(host, None), "NULL");
        collector.collect_from(host);
        for (name, value, complaint) in [
            ("OTEL_SDK_DISABLED", "true", None),
            ("OTEL_TRACES_EXPORTER", "none", None),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", Some("OTEL_EXPORTER_OTLP_PROTOCOL")),
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "collector:4318",
                Some("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
            ),
        ] {
            host.set(name, value);
            assert_eq!(kept(host, complaint), "NULL", "{name}={value}");
            host.unset(name);
        }
        // A delivery that was not sampled at first is not sampled later.
        host.set("OTEL_TRACES_SAMPLER", "always_off");
        let context = kept(host, None);
        assert!(context.starts_with("00-") && context.ends_with("-00"), "{context}");
        assert!(collector.0.received().is_empty());
        host.unset("OTEL_TRACES_SAMPLER");
        let worker = host.work();
        eventually("worked on", || host.count("webhook_queue") == 0);
        worker.stop();
        // The other deliveries start a trace when they are processed.
        let handled = collector.spans();
        assert_eq!(handled.len(), 5, "{handled:#?}");
        assert!(handled.iter().all(|span| span.parent.is_empty() && !context.contains(&span.trace)));
    }

    fn service_word(service: &Service, delivery: &Post) -> String {
        let answer = service.post(delivery);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.word()
    }

    #[test]
    fn a_request_to_clerk_says_how_often_it_was_sent_before() {
        let Some(mut host) = Host::with(Keeper::Sqlite) else { return };
        let collector = Collector::start();
        collector.collect_from(&mut host);
        let clerk = Receiver::start(|_| reply(500, ""));
        host.set("CLERK_API_URL", &clerk.url);
        host.set("CLERK_SECRET_KEY", "sk_test_s3cret");
        host.set("ADMIN_TOKEN", "t0ken");
        let service = host.serve();
        let answer = service.ask_api("POST", "/v1/users/user_1/ensure", Some("Bearer t0ken"));
        assert_eq!(answer.word(), "clerk_unavailable");
        service.stop();
        let mut requests = collector.spans();
        requests.retain(|span| span.name == "GET");
        let counts: Vec<&str> = requests.iter().map(|span| span.get("http.request.resend_count")).collect();
        assert_eq!(counts[..2], ["", "1"]);
        assert_eq!(counts.len(), clerk.received().len());
        for request in &requests {
            assert_eq!((request.kind, request.status), (SpanKind::Client, ERROR));
            assert_eq!((request.get("error.type"), request.get("server.address")), ("500", "127.0.0.1"));
        }
        collector.assert_never_told(&["user_1", "s3cret", "t0ken"]);
    }

    /// Both supported protocols export the same data.
    #[test]
    fn a_collector_that_speaks_json_is_spoken_to_in_json() {
        let Some(mut host) = Host::with(Keeper::Sqlite) else { return };
        let collector = Receiver::start(|_| reply(200, "{}"));
        let endpoint = format!("{}/over/here", collector.url.replace("http://", "http://clerk:s3cret@"));
        host.set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &endpoint);
        host.set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json");
        host.set("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0ken");
        host.set("OTEL_SERVICE_NAME", "users");
        host.set("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test");
        let service = host.serve();
        // The log names the collector at the start, without its credentials.
        let told =
            format!(r#""endpoint":"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT","collector":"{}""#, collector.url);
        let log = service.log();
        assert!(log.contains("traces are exported") && log.contains(&told), "{log}");
        assert!(!log.contains("s3cret") && !log.contains("over/here"), "{log}");
        assert_eq!(service_word(&service, &created("user_1")), "applied");
        // Spans that are not exported yet are exported at shutdown.
        service.stop();
        let received = collector.one();
        assert_eq!(
            (received.path.as_str(), received.header("authorization")),
            ("/over/here", "Bearer t0ken")
        );
        let text = received.json().to_string();
        for expected in
            ["POST /webhooks/clerk", "\"users\"", "deployment.environment.name", "service.version"]
        {
            assert!(text.contains(expected), "{expected} is missing in {text}");
        }
    }
}

/// Uses the program without features: this one, or the one in `TEST_PLAIN_PROGRAM`.
#[test]
fn a_program_that_can_neither_trace_nor_report_says_so_if_it_is_asked_to() {
    let Some(mut host) = Host::with(Keeper::Sqlite) else { return };
    host.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
    host.set("SENTRY_DSN", "https://k3y@sentry.example.com/42");
    let command = host.command(&["serve"]);
    let program = match env::var_os("TEST_PLAIN_PROGRAM") {
        Some(program) => program,
        None if cfg!(any(feature = "otel", feature = "sentry")) => {
            return skip("plain", "TEST_PLAIN_PROGRAM is not set");
        }
        None => command.get_program().to_owned(),
    };
    let mut plain = Command::new(program);
    plain
        .args(command.get_args())
        .env_clear()
        .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .current_dir(host.directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let service = Service::start(plain);
    for feature in ["otel", "sentry"] {
        assert!(service.log().contains(&format!("without the feature `{feature}`")), "{}", service.log());
    }
    assert!(!service.log().contains("k3y"), "{}", service.log());
    service.stop();
}
