//! The API as people and programs use it: log in, look, change, be refused; and what the files say afterwards.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::edge::{self, Edge, PATIENCE};
use crate::support::origin::Origin;

const PASSWORD: &str = "correct horse battery staple";

const AGENT: &str = "\
# The house, as on the label.
apiVersion: edge.tidegate.dev/v1alpha1
kind: TunnelAgent
metadata: {name: homelab}
spec:
  credential: {secretName: homelab-agent}
  allowedHostnames: [\"*.home.test\"]
  mappings:
  - name: nas # upstairs
    hostname: nas.home.test
    target: http://192.168.1.10
";

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn header(&self, name: &str) -> &str {
        let lines = self.head.lines();
        let mut fields = lines.filter_map(|line| line.split_once(": "));
        let found = fields.find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }

    /// Fields that are wrong, with the reason of each.
    #[track_caller]
    fn fields(&self) -> Vec<(String, String)> {
        let errors = self.json()["errors"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        errors
            .iter()
            .map(|error| (text(&error["field"]), text(&error["reason"])))
            .collect()
    }
}

/// Sends a request to the admin listener.
fn ask(edge: &Edge, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", edge.admin)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        write!(request, "{name}: {value}\r\n").unwrap();
    }
    if !body.is_empty() {
        let length = body.len();
        write!(
            request,
            "Content-Type: application/json\r\nContent-Length: {length}\r\n"
        )
        .unwrap();
    }
    write!(stream, "{request}\r\n{body}").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{reply:?}"));
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// What `tidegate account` prints and tells.
fn account(args: &[&str], input: &str) -> (String, String) {
    let mut command = Edge::command();
    command.arg("account").args(args);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// An edge with the agent, a route, and accounts: anna with her password, `ci` and `eye` with tokens.
fn start(objects: &[String]) -> (Edge, String, String) {
    let (anna, _) = account(
        &["password", "anna", "--password-file", "-"],
        &format!("{PASSWORD}\n"),
    );
    let (ci, told) = account(&["token", "ci", "--scopes", "read,mappings:write"], "");
    let ci_token = told.lines().nth(1).unwrap().to_owned();
    let (eye, told) = account(&["token", "eye", "--scopes", "read"], "");
    let eye_token = told.lines().nth(1).unwrap().to_owned();
    let accounts = format!("users:\n{anna}tokens:\n{ci}{eye}");
    assert!(!accounts.contains(PASSWORD) && !accounts.contains(&ci_token));
    let file = tempfile::Builder::new()
        .prefix("tidegate-accounts-")
        .tempdir()
        .unwrap();
    let path = file.keep().join("accounts.yaml");
    fs::write(&path, accounts).unwrap();
    let mut builder = Edge::builder()
        .arg("--accounts")
        .arg(path.to_str().unwrap());
    for object in objects {
        builder = builder.object(object);
    }
    (
        builder.start(),
        format!("Bearer {ci_token}"),
        format!("Bearer {eye_token}"),
    )
}

#[test]
fn mappings_are_changed_in_their_file_by_people_and_programs() {
    let (edge, ci, eye) = start(&[AGENT.to_owned()]);
    let file = edge.objects().join("object-0.yaml");
    let program = [("Authorization", ci.as_str())];

    // Nobody sees anything without saying who they are; health and metrics stay open.
    assert_eq!(ask(&edge, "GET", "/api/v1/mappings", &[], "").status, 401);
    assert_eq!(ask(&edge, "GET", "/api/v1/routes", &[], "").status, 401);
    assert_eq!(
        ask(
            &edge,
            "GET",
            "/api/v1/routes",
            &[("Authorization", "Bearer tgp_x")],
            ""
        )
        .status,
        401
    );
    assert_eq!(ask(&edge, "GET", "/readyz", &[], "").status, 200);
    assert_eq!(
        ask(&edge, "GET", "/api/v1/routes", &program, "").status,
        200
    );

    // A program lists and creates.
    let listed = ask(&edge, "GET", "/api/v1/mappings?agent=homelab", &program, "").json();
    assert_eq!(listed[0]["hostname"], "nas.home.test");
    assert_eq!(listed[0]["file"], "object-0.yaml");
    let wrong = json!({"agent": "homelab", "name": "photos", "hostname": "photos.elsewhere.test", "target": "ftp://x", "colour": "red", "enabled": "yes"});
    let refused = ask(
        &edge,
        "POST",
        "/api/v1/mappings",
        &program,
        &wrong.to_string(),
    );
    assert_eq!(refused.status, 422, "{}", refused.body);
    assert_eq!(refused.header("content-type"), "application/problem+json");
    let fields = refused.fields();
    for expected in [("colour", "UnknownField"), ("enabled", "WrongType")] {
        assert!(
            fields
                .iter()
                .any(|(field, reason)| (field.as_str(), reason.as_str()) == expected),
            "{fields:?}"
        );
    }
    let wrong = json!({"agent": "homelab", "name": "photos", "hostname": "photos.elsewhere.test", "target": "ftp://x"});
    let fields = ask(
        &edge,
        "POST",
        "/api/v1/mappings",
        &program,
        &wrong.to_string(),
    )
    .fields();
    let names: Vec<_> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert!(
        names.contains(&"hostname") && names.contains(&"target"),
        "{fields:?}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), AGENT);
    let right = json!({"agent": "homelab", "name": "photos", "hostname": "photos.home.test", "target": "http://192.168.1.20:2342"});
    let created = ask(
        &edge,
        "POST",
        "/api/v1/mappings",
        &program,
        &right.to_string(),
    );
    assert_eq!(created.status, 201, "{}", created.body);
    let place = created.header("location").to_owned();
    assert_eq!(place, "/api/v1/mappings/default/homelab/photos");
    let added =
        "  - name: photos\n    hostname: photos.home.test\n    target: http://192.168.1.20:2342\n";
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with(AGENT), "{text}");
    let lines = |text: &str| {
        let mut lines: Vec<_> = text
            .lines()
            .map(|it| it.trim_start_matches([' ', '-']).to_owned())
            .collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&text[AGENT.len()..]), lines(added));
    assert_eq!(
        ask(
            &edge,
            "POST",
            "/api/v1/mappings",
            &program,
            &right.to_string()
        )
        .status,
        409
    );

    // A reader may not, whatever it asks.
    let reader = [("Authorization", eye.as_str())];
    let switch = format!("{place}/enabled");
    let off = json!({"enabled": false}).to_string();
    let refused = ask(&edge, "PUT", &switch, &reader, &off);
    assert_eq!(
        (refused.status, &refused.json()["reason"]),
        (403, &json!("MissingScope"))
    );
    assert_eq!(
        ask(&edge, "GET", "/api/v1/requests", &reader, "").status,
        403
    );

    // A person logs in, and changes with the session's second half only.
    let login = |password: &str| json!({"name": "anna", "password": password}).to_string();
    let wrong = ask(&edge, "POST", "/api/v1/session", &[], &login("guess"));
    assert_eq!(
        (wrong.status, &wrong.json()["reason"]),
        (401, &json!("LoginFailed"))
    );
    let foreign = [("Sec-Fetch-Site", "cross-site")];
    assert_eq!(
        ask(&edge, "POST", "/api/v1/session", &foreign, &login(PASSWORD)).status,
        403
    );
    let session = ask(&edge, "POST", "/api/v1/session", &[], &login(PASSWORD));
    assert_eq!(session.status, 200, "{}", session.body);
    let cookie = session
        .header("set-cookie")
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    assert!(
        session
            .header("set-cookie")
            .contains("HttpOnly; SameSite=Strict")
    );
    let csrf = session.json()["csrfToken"].as_str().unwrap().to_owned();
    let without = ask(&edge, "PUT", &switch, &[("Cookie", &cookie)], &off);
    assert_eq!(
        (without.status, &without.json()["reason"]),
        (403, &json!("CsrfTokenMissing"))
    );
    let person = [("Cookie", cookie.as_str()), ("X-CSRF-Token", csrf.as_str())];
    let before = ask(&edge, "GET", &place, &person, "");
    let tag = before.header("etag").to_owned();
    let switched = ask(&edge, "PUT", &switch, &person, &off);
    assert_eq!(
        (switched.status, &switched.json()["enabled"]),
        (200, &json!(false)),
        "{}",
        switched.body
    );
    let outdated = [person[0], person[1], ("If-Match", tag.as_str())];
    let mut body = before.json();
    body["target"] = json!("http://192.168.1.21:2342");
    assert_eq!(
        ask(&edge, "PUT", &place, &outdated, &body.to_string()).status,
        412
    );
    let replaced = ask(&edge, "PUT", &place, &person, &body.to_string());
    assert_eq!(
        (replaced.status, &replaced.json()["target"]),
        (200, &json!("http://192.168.1.21:2342")),
        "{}",
        replaced.body
    );
    assert_eq!(ask(&edge, "DELETE", &place, &person, "").status, 204);
    assert_eq!(fs::read_to_string(&file).unwrap(), AGENT);
    assert_eq!(ask(&edge, "DELETE", &place, &person, "").status, 404);

    // Who says that the folder is kept elsewhere is believed.
    fs::write(edge.objects().join(".tidegate-read-only"), "kept in Git\n").unwrap();
    let refused = ask(
        &edge,
        "DELETE",
        "/api/v1/mappings/default/homelab/nas",
        &person,
        "",
    );
    assert_eq!(
        (refused.status, &refused.json()["reason"]),
        (409, &json!("ReadOnly"))
    );
    assert_eq!(
        ask(&edge, "DELETE", "/api/v1/session", &person, "").status,
        204
    );
    assert_eq!(ask(&edge, "GET", &place, &person, "").status, 401);

    // Guessing is slowed down, for a name that exists and for one that does not.
    for name in ["anna", "nobody"] {
        let guess = json!({"name": name, "password": "guess"}).to_string();
        let statuses: Vec<_> = (0..6)
            .map(|_| ask(&edge, "POST", "/api/v1/session", &[], &guess).status)
            .collect();
        assert_eq!(statuses, [401, 401, 401, 401, 401, 429], "{name}");
    }
    let log = edge.log();
    assert!(
        log.contains("mapping changed") && log.contains("logged in"),
        "{log}"
    );
    for secret in [PASSWORD, &csrf, cookie.split_once('=').unwrap().1, &ci[7..]] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
}

#[test]
fn what_happens_is_told_at_once() {
    let origin = Origin::text("hello");
    let (edge, ci, _) = start(&[
        AGENT.to_owned(),
        edge::route("web", "web.test", origin.address()),
    ]);
    let description = ask(&edge, "GET", "/api/v1/openapi.json", &[], "").json();
    assert_eq!(description["openapi"], "3.1.0");
    let login = json!({"name": "anna", "password": PASSWORD}).to_string();
    let session = ask(&edge, "POST", "/api/v1/session", &[], &login);
    let cookie = session
        .header("set-cookie")
        .split(';')
        .next()
        .unwrap()
        .to_owned();

    let mut stream = TcpStream::connect(("127.0.0.1", edge.admin)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET /api/v1/events?types=mapping,request HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n\r\n"
    )
    .unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let mut next = |event: &str| {
        lines
            .find(|line| *line == format!("event: {event}"))
            .unwrap();
        let data = lines.find(|line| line.starts_with("data: ")).unwrap();
        serde_json::from_str::<Value>(&data["data: ".len()..]).unwrap()
    };
    next("open");
    assert_eq!(edge.get("web.test", "/a?token=secret&b=1").status, 200);
    let request = next("request");
    assert_eq!(
        (&request["host"], &request["path"], &request["query"]),
        (
            &json!("web.test"),
            &json!("/a"),
            &json!("token=[redacted]&b=1")
        )
    );
    let off = json!({"enabled": false}).to_string();
    let switched = ask(
        &edge,
        "PUT",
        "/api/v1/mappings/default/homelab/nas/enabled",
        &[("Authorization", &ci)],
        &off,
    );
    assert_eq!(switched.status, 200, "{}", switched.body);
    let mapping = next("mapping");
    assert_eq!(
        (&mapping["change"], &mapping["by"]),
        (&json!("disabled"), &json!("ci"))
    );
    let kept = ask(
        &edge,
        "GET",
        "/api/v1/requests?host=web.test&limit=1",
        &[("Cookie", &cookie)],
        "",
    )
    .json();
    assert_eq!(kept[0]["request_id"], request["request_id"]);
}

#[test]
fn accounts_that_are_wrong_are_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let accounts = folder.path().join("accounts.yaml");
    fs::write(&accounts, "users:\n- {name: anna, passwordHash: plain}\n").unwrap();
    let mut command = Edge::command();
    command
        .arg("run")
        .arg(folder.path())
        .arg("--accounts")
        .arg(&accounts);
    command.args([
        "--http",
        "off",
        "--https",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ]);
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains(
            "users[0].passwordHash: is no Argon2 hash; `tidegate account password` makes one"
        ),
        "{told}"
    );
}
