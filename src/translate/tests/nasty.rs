//! No value of any field makes `translate` panic, and what it refuses it does not serve.
//!
//! Every string and number of the golden inputs is replaced in turn by values that break careless code.

use std::fs;
use std::sync::Arc;

use serde_json::Value;

use super::{input, now, testdata};
use crate::api::TlsRoute;
use crate::api::conditions::{ConditionType, is_true};
use crate::translate::translate;

const STRINGS: [&str; 14] = [
    "",
    " ",
    "\0",
    "ü💥",
    "*",
    "*.",
    "/",
    "%",
    "%ff%2f..",
    "[::1",
    "-1",
    "99999999999999999999h",
    "a\r\nb: c",
    "(((((((((((((((((((((((((",
];

const NUMBERS: [i64; 5] = [-1, 0, 65_536, i32::MAX as i64, i32::MIN as i64];

/// Calls with every variant of the value that has one leaf replaced.
fn variants(value: &Value, call: &mut dyn FnMut(Value)) {
    match value {
        Value::String(_) => {
            for text in STRINGS {
                call(text.into());
            }
            call("x".repeat(70_000).into());
        }
        Value::Number(_) => {
            for number in NUMBERS {
                call(number.into());
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                variants(item, &mut |replaced| {
                    let mut copy = items.clone();
                    copy[index] = replaced;
                    call(copy.into());
                });
            }
            call(Value::Array(Vec::new()));
        }
        Value::Object(map) => {
            for (key, inner) in map {
                variants(inner, &mut |replaced| {
                    let mut copy = map.clone();
                    copy.insert(key.clone(), replaced);
                    call(copy.into());
                });
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

#[test]
fn no_value_of_a_field_makes_it_panic() {
    let mut tried = 0;
    for name in ["filters", "backends", "balancing", "matches", "client-auth"] {
        let path = testdata().join(format!("{name}.in.yaml"));
        let base = input::steps(&fs::read_to_string(path).unwrap()).remove(0);
        for (index, route) in base.routes.iter().enumerate() {
            let spec = serde_json::to_value(&route.spec).unwrap();
            variants(&spec, &mut |spec| {
                let Ok(spec) = serde_json::from_value(spec) else {
                    return;
                };
                let mut inputs = base.clone();
                inputs.routes[index] = Arc::new(TlsRoute {
                    spec,
                    ..(**route).clone()
                });
                let translation = translate(&inputs, now());
                for (id, status) in &translation.statuses.routes {
                    let served = translation
                        .snapshot
                        .hosts
                        .values()
                        .any(|host| host.route == *id);
                    assert!(
                        is_true(&status.conditions, ConditionType::Accepted) || !served,
                        "{id} is refused and served"
                    );
                }
                tried += 1;
            });
        }
    }
    assert!(tried > 3000, "only {tried} variants were tried");
}
