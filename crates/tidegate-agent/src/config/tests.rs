//! Configurations, right and wrong.

use super::*;

fn join(given: &Given, yaml: &str) -> Result<Config, Vec<String>> {
    let file = file::parse(yaml).map_err(|found| vec![found])?;
    let joined = given.join(file);
    joined.map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

const FULL: &str = "
edge: https://edge.example.com
agent: default/homelab
tokenFile: token
proxy: socks5://user:hunter2@10.0.0.1:1080
caFile: ca.pem
links: 1
status: off
allowTargets: [192.168.1.0/24, nas.lan]
mappings:
  - name: nas
    hostname: nas.home.example.com
    target: https://192.168.1.10:5001/
    insecureSkipVerify: true
    description: Synology in the cellar
  - { name: ssh, hostname: ssh.home.example.com, target: 'tcp://192.168.1.10:22' }
";

#[test]
fn a_file_is_enough() {
    let config = join(&Given::default(), FULL).unwrap();
    assert_eq!(config.edges[0].url(), "https://edge.example.com");
    assert_eq!(config.agent, AgentId::new("default", "homelab"));
    assert_eq!(config.token, TokenSource::File("token".into()));
    assert_eq!((config.links, config.status), (1, None));
    assert_eq!(config.mappings.len(), 2);
    assert_eq!(config.mappings[0].target, "https://192.168.1.10:5001");
    assert!(config.mappings[0].insecure_skip_verify);
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    let proxy = config.proxy.to(&config.edges[0]).unwrap();
    assert_eq!(proxy.raw_auth(), Some(("user", "hunter2")));
}

#[test]
fn flags_and_environment_win_over_the_file() {
    let given = Given {
        edge: vec!["https://one:8443".to_owned(), "[2001:db8::1]".to_owned()],
        agent: Some("lab".to_owned()),
        token: Some(Secret::new("tga_x".to_owned())),
        proxy: Some("none".to_owned()),
        links: Some(4),
        status: Some("[::1]:0".to_owned()),
        allow_target: vec!["*.lan".to_owned()],
        expose: vec!["*.git.example.com=http://git.lan".to_owned()],
        ..Given::default()
    };
    let config = join(&given, FULL).unwrap();
    let edges: Vec<String> = config.edges.iter().map(Edge::authority).collect();
    assert_eq!(edges, ["one:8443", "[2001:db8::1]"]);
    assert_eq!(config.agent, AgentId::new("default", "lab"));
    assert_eq!(config.token.read().unwrap().expose(), "tga_x");
    assert_eq!((config.links, config.proxy), (4, Proxies::None));
    assert_eq!(config.status, Some("[::1]:0".parse().unwrap()));
    assert_eq!(config.allow_targets, [TargetRule::parse("*.lan").unwrap()]);
    let exposed = &config.mappings[2];
    assert_eq!(
        (&*exposed.name, &*exposed.target),
        ("any-git-example-com", "http://git.lan:80")
    );
}

#[test]
fn every_mistake_is_named_with_its_remedy() {
    for (yaml, expected) in [
        (
            "agent: a\ntokenFile: t",
            "edge: no edge is given; write edge: https://",
        ),
        (
            "edge: http://x\nagent: a\ntokenFile: t",
            "edge: \"http://x\" begins with http://",
        ),
        (
            "edge: https://x/y\nagent: a\ntokenFile: t",
            "edge: \"https://x/y\" has a path",
        ),
        (
            "edge: x:99999\nagent: a\ntokenFile: t",
            "edge: \"x:99999\" is not the address",
        ),
        ("edge: [x, 'y z']\nagent: a\ntokenFile: t", "edge: \"y z\""),
        (
            "edge: x\ntokenFile: t",
            "agent: it is not said who the agent is; write NAMESPACE/NAME",
        ),
        (
            "edge: x\nagent: A/b\ntokenFile: t",
            "agent: \"A/b\" is no name of an object",
        ),
        ("edge: x\nagent: a", "tokenFile: no token is given"),
        (
            "edge: x\nagent: a\ntokenFile: t\nlinks: 9",
            "links: 9 is not from 1 to 4",
        ),
        ("edge: x\nagent: a\ntokenFile: t\nlinks: two", "line 4"),
        ("edge: x\nagent: a\ntokenFile: t\nlnks: 2", "lnks"),
        (
            "edge: x\nagent: a\ntokenFile: t\nproxy: ftp://p",
            "proxy: its scheme is \"ftp\"",
        ),
        (
            "edge: x\nagent: a\ntokenFile: t\nproxy: 'http://a b'",
            "proxy: it is not a URL",
        ),
        (
            "edge: x\nagent: a\ntokenFile: t\nstatus: here",
            "status: \"here\" is no address",
        ),
        (
            "edge: x\nagent: a\ntokenFile: t\nallowTargets: 'a b'",
            "allowTargets: \"a b\"",
        ),
    ] {
        let problems = join(&Given::default(), yaml).unwrap_err();
        assert!(
            problems.iter().any(|it| it.contains(expected)),
            "{yaml}: {problems:#?}"
        );
    }
}

#[test]
fn mistakes_in_mappings_are_told_together() {
    let yaml = "
edge: x
agent: a
tokenFile: t
mappings:
  - { name: A, hostname: a b, target: nas }
  - { name: b, hostname: b.example.com, target: 'http://nas', insecureSkipVerify: true }
  - { name: c, hostname: c.example.com, target: 'http://nas' }
  - { name: c, hostname: c.example.com, target: 'http://nas/path' }
  - { name: c, hostname: d.example.com, target: 'http://nas' }
  - { name: d, hostname: e.example.com, port: 22, target: 'tcp://nas:22' }
  - { name: e, port: 80, target: 'http://nas' }
  - { name: f, hostname: f.example.com, target: 'udp://nas:53' }
  - { name: g, port: 53, target: 'udp://nas:53', proxyProtocol: v1 }
  - { name: h, port: 53, target: 'udp://nas:53', proxyProtocol: v2 }
";
    let problems = join(&Given::default(), yaml).unwrap_err();
    let fields: Vec<&str> = problems
        .iter()
        .filter_map(|it| it.split(": ").next())
        .collect();
    let expected = [
        "mappings[0].name",
        "mappings[0].hostname",
        "mappings[0].target",
        "mappings[1].insecureSkipVerify",
        "mappings[3].target",
        "mappings[5].port",
        "mappings[6].target",
        "mappings[7].target",
        "mappings[8].proxyProtocol",
        "mappings",
    ];
    assert_eq!(fields, expected, "{problems:#?}");
}

#[test]
fn a_token_file_is_read_each_time_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let source = TokenSource::File(path.clone());
    assert!(source.read().unwrap_err().contains("No such file"));
    std::fs::write(&path, "\n").unwrap();
    assert!(source.read().unwrap_err().ends_with("the file is empty"));
    std::fs::write(&path, "tga_secret\n").unwrap();
    let token = source.read().unwrap();
    assert_eq!(token.expose(), "tga_secret");
    assert!(!format!("{token:?}").contains("secret"));
}

#[test]
fn paths_in_the_file_start_at_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.yaml");
    std::fs::write(&path, FULL).unwrap();
    let given = Given {
        config: Some(path),
        ..Given::default()
    };
    let config = Config::load(&given).unwrap();
    assert_eq!(config.token, TokenSource::File(folder.path().join("token")));
    assert_eq!(config.ca_file, Some(folder.path().join("ca.pem")));
    let missing = Given {
        config: Some(folder.path().join("no.yaml")),
        ..Given::default()
    };
    assert!(matches!(
        Config::load(&missing),
        Err(ConfigError::Read { .. })
    ));
}
