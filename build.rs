//! Lists the files in `migrations/`, so that new migrations are found automatically.

use std::{env, fmt::Write as _, fs, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=migrations");
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    let mut code = String::new();
    for keeper in ["postgres", "sqlite", "mysql", "mongodb"] {
        let folder = Path::new(&root).join("migrations").join(keeper);
        let files = fs::read_dir(&folder).expect("every database has its migrations");
        let mut files: Vec<_> = files.map(|file| file.expect("a file can be listed").path()).collect();
        files.sort();
        if keeper == "mongodb" {
            code.push_str("#[cfg(feature = \"mongodb\")]\n");
        }
        let _ = writeln!(code, "pub(super) const {}: &[Migration] = &[", keeper.to_uppercase());
        for file in files {
            let path = file.to_str().expect("a migration has a path");
            let name = file.file_stem().and_then(|name| name.to_str()).expect("a migration has a name");
            let version = name.split('_').next().and_then(|number| number.parse::<i64>().ok());
            let version = version.expect("the name of a migration begins with its number");
            let _ = writeln!(
                code,
                "Migration {{ version: {version}, name: {name:?}, sql: include_str!({path:?}) }},"
            );
        }
        code.push_str("];\n");
    }
    let out = env::var("OUT_DIR").expect("cargo says where to write");
    fs::write(Path::new(&out).join("migrations.rs"), code).expect("the list can be written");
}
