//! From older versions of the format to the present one, step by step.

use std::path::Path;

use serde_json::Value;

use crate::{ProfileError, SCHEMA};

/// What turns a file of one version into one of the next. It gets and leaves an object; the version is changed by the
/// caller. A field that cannot be made sense of is left as it is, for the reader of the new version to refuse.
type Step = fn(&mut Value);

/// The step from each version to the next: the first one leads from 1 to 2. As long as [`SCHEMA`] says, or this does not
/// compile: a version is raised together with the way to it.
const STEPS: [Step; SCHEMA as usize - 1] = [];

/// A file of some version as one of the present version.
///
/// # Errors
/// [`ProfileError::NewerSchema`] and [`ProfileError::OlderSchema`]: from there leads no step.
pub(crate) fn migrate(path: &Path, file: Value, found: u64) -> Result<Value, ProfileError> {
    let supported = SCHEMA;
    match found {
        _ if found > u64::from(SCHEMA) => Err(ProfileError::NewerSchema { path: path.to_owned(), found, supported }),
        0 => Err(ProfileError::OlderSchema { path: path.to_owned(), found, supported }),
        _ => Ok(follow(&STEPS, file, found as usize)),
    }
}

/// Follows the steps from version `from`, which is 1 or more, to the last.
fn follow(steps: &[Step], mut file: Value, from: usize) -> Value {
    for (i, step) in steps.iter().enumerate().skip(from - 1) {
        step(&mut file);
        file["schema"] = Value::from(i + 2);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Version 2 named a field otherwise, version 3 counts in other units.
    const MADE_UP: [Step; 2] = [
        |file| {
            let old = file.as_object_mut().and_then(|object| object.remove("speed"));
            file["gflops"] = old.unwrap_or_default();
        },
        |file| {
            if let Some(gflops) = file["gflops"].as_f64() {
                file["gflops"] = Value::from(gflops * 1000.0);
            }
        },
    ];

    #[test]
    fn every_step_is_taken_once_and_in_order() {
        let first = json!({"schema": 1, "speed": 2.0, "else": "kept"});
        assert_eq!(follow(&MADE_UP, first, 1), json!({"schema": 3, "gflops": 2000.0, "else": "kept"}));
        let second = json!({"schema": 2, "gflops": 2.0});
        assert_eq!(follow(&MADE_UP, second, 2), json!({"schema": 3, "gflops": 2000.0}));
        let third = json!({"schema": 3, "gflops": 2.0});
        assert_eq!(follow(&MADE_UP, third.clone(), 3), third);
    }

    #[test]
    fn what_makes_no_sense_is_left_to_the_reader() {
        let odd = json!({"schema": 1, "speed": ["fast"]});
        assert_eq!(follow(&MADE_UP, odd, 1), json!({"schema": 3, "gflops": ["fast"]}));
    }

    #[test]
    fn versions_without_a_way_are_refused() {
        let path = Path::new("profile.json");
        let newer = migrate(path, json!({}), u64::from(SCHEMA) + 1);
        assert!(matches!(newer, Err(ProfileError::NewerSchema { .. })));
        assert!(matches!(migrate(path, json!({}), u64::MAX), Err(ProfileError::NewerSchema { .. })));
        assert!(matches!(migrate(path, json!({}), 0), Err(ProfileError::OlderSchema { .. })));
        let present = json!({"schema": SCHEMA});
        assert_eq!(migrate(path, present.clone(), u64::from(SCHEMA)).unwrap(), present);
    }
}
