//! The deployment files: what they state about the program must be true.

use std::{fs, path::Path, process::Command};

use clerk_sync::config::Settings;

use crate::service::skip;

const UNIT: &str = "ops/systemd/clerk-sync.service";

#[test]
fn the_files_of_other_places_name_only_variables_that_there_are() {
    let known = Settings::variables();
    let mut named = 0;
    for file in files() {
        let text = fs::read_to_string(root().join(&file)).unwrap();
        let words = text.split(|character: char| !(character.is_ascii_uppercase() || character == '_'));
        for word in words.filter(|word| word.len() > 3 && word.trim_matches('_').contains('_')) {
            // Variables of other images, of Docker, of Linux, and of image builds.
            let others =
                ["POSTGRES_", "MARIADB_", "MONGO_INITDB_", "GF_", "COMPOSE_FILE", "AF_", "SOURCE_DATE_EPOCH"];
            if others.iter().any(|others| word.starts_with(others)) {
                continue;
            }
            named += 1;
            assert!(
                known.iter().any(|variable| variable == word),
                "{file} names the unknown variable {word}"
            );
        }
    }
    assert!(named > 20, "only {named} variables were found");
}

#[test]
fn systemd_takes_the_unit_and_finds_it_well_protected() {
    let Some(version) = version_of_systemd() else {
        return skip("systemd-analyze", "it is not installed, or older than 250");
    };
    // The tests use the program that was just built.
    let unit = fs::read_to_string(root().join(UNIT)).unwrap();
    let unit = unit.replace("/usr/local/bin/clerk-sync", env!("CARGO_BIN_EXE_clerk-sync"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clerk-sync.service");
    fs::write(&path, unit).unwrap();

    let verified = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && said.is_empty(), "systemd {version}: {said}");

    // In tenths, from 0 (safe) to 100.
    let rated = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=29", "--no-pager"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(rated.status.success(), "systemd {version}: {}", String::from_utf8_lossy(&rated.stdout));
}

#[test]
fn proxies_take_the_configurations_that_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=sync.example.com",
        ])
        .args(["-keyout", &at("key.pem"), "-out", &at("certificate.pem")])
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        return skip("openssl", "no certificate can be created");
    }
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| fs::read_to_string(at(name)).unwrap());
    fs::write(at("both.pem"), certificate + &key).unwrap();
    for (file, program, arguments) in [
        ("nginx.conf", "nginx", &["-t", "-q", "-c"][..]),
        ("Caddyfile", "caddy", &["validate", "--adapter", "caddyfile", "--config"]),
        ("haproxy.cfg", "haproxy", &["-c", "-f"]),
        ("envoy.yaml", "envoy", &["--mode", "validate", "-c"]),
    ] {
        let text = fs::read_to_string(root().join("ops/proxies").join(file)).unwrap();
        let text = text
            .replace("crt /etc/ssl/sync.example.com.pem", &format!("crt {}", at("both.pem")))
            .replace("/etc/ssl/sync.example.com.pem", &at("certificate.pem"))
            .replace("/etc/ssl/sync.example.com.key", &at("key.pem"))
            .replace("/run/nginx.pid", &at("nginx.pid"))
            .replace("/var/log/nginx", &folder.path().display().to_string());
        let path = at(file);
        fs::write(&path, text).unwrap();
        let path_of_tools = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let checked = Command::new("env")
            .arg(program)
            .args(arguments)
            .arg(&path)
            .env("PATH", path_of_tools)
            .env("HOME", folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        if checked.status.code() == Some(127) {
            skip(program, "it is not installed");
            continue;
        }
        assert!(checked.status.success(), "{file}: {said}");
    }
}

#[test]
fn proxies_lose_nothing_to_a_restart_and_answer_nothing_themselves() {
    let shown = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    for file in
        ["nginx.conf", "Caddyfile", "haproxy.cfg", "traefik.yaml", "traefik-routes.yaml", "envoy.yaml"]
    {
        let text = fs::read_to_string(root().join("ops/proxies").join(file)).unwrap();
        assert!(shown.contains(&text), "docs/operations.md does not show ops/proxies/{file} as it is");
        if file == "traefik.yaml" {
            continue;
        }
        for part in ["10.0.0.11", "10.0.0.12", "/webhooks/clerk", "404", "60s", "12s"] {
            assert!(text.contains(part), "{file} lacks {part}");
        }
        assert!(!text.contains("return 200") && !text.contains("respond 200"), "{file}");
    }
}

#[test]
fn the_image_is_built_from_every_package() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = toml::from_str(&manifest).unwrap();
    let read = fs::read_to_string(root().join(".dockerignore")).unwrap();
    for member in manifest["workspace"]["members"].as_array().unwrap() {
        let line = format!("!{}", member.as_str().unwrap());
        assert!(read.lines().any(|read| read == line), ".dockerignore lacks {line}");
    }
}

fn version_of_systemd() -> Option<u32> {
    let shown = Command::new("systemd-analyze").arg("--version").output().ok()?;
    let shown = String::from_utf8(shown.stdout).ok()?;
    shown.split_whitespace().nth(1)?.parse().ok().filter(|version| *version >= 250)
}

/// The files that show how to run the program.
fn files() -> Vec<String> {
    let mut files = vec!["compose.yaml".to_owned(), "Dockerfile".to_owned(), UNIT.to_owned()];
    for entry in fs::read_dir(root().join("ops/kubernetes")).unwrap() {
        files.push(format!("ops/kubernetes/{}", entry.unwrap().file_name().to_str().unwrap()));
    }
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
