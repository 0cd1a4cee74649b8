//! Dependencies run one way, and `unsafe` has an address.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which members of the workspace each one may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("vesper-sa", &[]),
    ("vesper-esp", &["vesper-sa"]),
    ("vesper-offload", &["vesper-sa", "vesper-esp"]),
    ("vesper-verify", &["vesper-sa", "vesper-esp"]),
    (
        "vesper-daemon",
        &["vesper-sa", "vesper-esp", "vesper-offload", "vesper-verify"],
    ),
    (
        "vesper-tests",
        &["vesper-sa", "vesper-esp", "vesper-offload", "vesper-verify"],
    ),
    (
        "vesper-bench",
        &["vesper-sa", "vesper-esp", "vesper-offload"],
    ),
];

/// Where `unsafe` may stand; everything else is free of it.
const UNSAFE: &[&str] = &[
    "esp/src/aead/kernel",
    "benches/src/sys",
    "daemon/src/node/sys",
    "daemon/src/port/sys",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn members() -> BTreeMap<String, (String, toml::Table)> {
    let manifest: toml::Table = read(&root().join("Cargo.toml")).parse().unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    members
        .iter()
        .map(|member| {
            let directory = member.as_str().unwrap();
            let manifest: toml::Table = read(&root().join(directory).join("Cargo.toml"))
                .parse()
                .unwrap();
            let name = manifest["package"]["name"].as_str().unwrap();
            (name.to_owned(), (directory.to_owned(), manifest))
        })
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of workspace members in the dependency tables of a manifest, those of tests included.
fn workspace_dependencies(manifest: &toml::Table) -> Vec<String> {
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|table| manifest.get(*table)?.as_table())
        .flat_map(|table| table.keys())
        .filter(|name| name.starts_with("vesper"))
        .cloned()
        .collect()
}

#[test]
fn dependencies_run_one_way() {
    let members = members();
    assert!(members.len() >= 6);
    for (name, (_, manifest)) in members {
        let (_, allowed) = MAY_USE
            .iter()
            .find(|(member, _)| *member == name)
            .unwrap_or_else(|| panic!("{name} has no place in the chain; give it one here"));
        for dependency in workspace_dependencies(&manifest) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} must not use {dependency}"
            );
        }
    }
}

#[test]
fn unsafe_has_an_address() {
    let mut files = Vec::new();
    for (directory, _) in members().into_values() {
        rust_files(&root().join(directory), &mut files);
    }
    assert!(files.len() > 30);
    for path in files {
        let relative = path.strip_prefix(root()).unwrap();
        if UNSAFE.iter().any(|place| relative.starts_with(place)) {
            continue;
        }
        for (number, line) in read(&path).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let used = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|word| code.contains(word) && !code.contains('"'));
            assert!(!used, "unsafe at {}:{}", relative.display(), number + 1);
        }
    }
}

#[test]
fn crates_without_a_place_for_unsafe_forbid_it() {
    for (name, (directory, _)) in members() {
        let lib = root().join(&directory).join("src/lib.rs");
        let flat = root().join(&directory).join("lib.rs");
        let main = root().join(&directory).join("src/main.rs");
        for file in [lib, flat, main].iter().filter(|file| file.exists()) {
            let text = read(file);
            let has_place = UNSAFE.iter().any(|place| place.starts_with(&directory));
            let expected = if has_place {
                "#![deny(unsafe_code)]"
            } else {
                "#![forbid(unsafe_code)]"
            };
            assert!(
                text.contains(expected),
                "{name}: {} lacks {expected}",
                file.display()
            );
        }
    }
}

fn rust_files(directory: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).unwrap();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            if !path.ends_with("target") {
                rust_files(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
