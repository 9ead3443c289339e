//! A conflict resolver as it was written for version 0.1.0 of the interface, with nothing but its WIT and a generator of bindings. It keeps
//! the greatest value, byte by byte. Tests of the host bind it: components of released versions go on working.

#[cfg(target_arch = "wasm32")]
mod guest {
    wit_bindgen::generate!({ path: "../../wit/0.1.0", world: "conflict-resolver" });

    use exports::witan::plugin::{plugin, resolver};
    use witan::plugin::host::{Severity, log};
    use witan::plugin::types::Error;

    struct Greatest;

    impl plugin::Guest for Greatest {
        fn describe() -> plugin::Manifest {
            plugin::Manifest {
                name: env!("CARGO_PKG_NAME").to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                hook: "conflict-resolver".to_owned(),
                deterministic: true,
            }
        }

        fn configure(configuration: Vec<u8>) -> Result<(), Vec<plugin::ConfigIssue>> {
            if configuration.is_empty() {
                return Ok(());
            }
            Err(vec![plugin::ConfigIssue { at: String::new(), problem: "must be empty".to_owned() }])
        }
    }

    impl resolver::Guest for Greatest {
        fn resolve(question: resolver::Question) -> Result<resolver::Verdict, Error> {
            log(Severity::Debug, "asked");
            let indexes = 0..question.siblings.len();
            let greatest = indexes.max_by_key(|index| question.siblings[*index].value.as_slice());
            greatest.map(|index| resolver::Verdict::Pick(index as u32)).ok_or(Error::InvalidInput)
        }

        fn samples() -> Vec<Vec<u8>> {
            vec![b"a".to_vec(), b"b".to_vec()]
        }
    }

    export!(Greatest);
}
