//! The reference page of condition types and reasons.

use std::fmt::Write as _;

use crate::api::conditions::{ConditionType, Reason};

pub(super) fn page() -> String {
    let mut page = String::from(
        "<!-- Generated from src/api/conditions.rs, do not edit: cargo xtask codegen -->\n\
         \n\
         # Conditions\n\
         \n\
         Every object of Tidegate reports its state in `status.conditions`, as Kubernetes objects do.\n\
         All problems are reported at once; each message names the field, what was found there and how to mend it.\n\
         The words are the same in statuses, in the output of `tidegate check` and in the admin API.\n\
         \n\
         `Reconciling` and `Stalled` are present only while they are true.\n\
         `Ready` stays true while a certificate is being renewed.\n\
         \n\
         ## Types\n\
         \n\
         | Type | True means |\n\
         | --- | --- |\n",
    );
    for type_ in ConditionType::ALL {
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| `{type_}` | {} |", type_.meaning().trim());
    }
    page.push_str("\n## Reasons\n\n| Reason | Meaning |\n| --- | --- |\n");
    for reason in Reason::ALL {
        let _ = writeln!(page, "| `{reason}` | {} |", reason.meaning().trim());
    }
    page
}
