//! Tests of bare algorithms.

use vesper_esp::aead::Implementation;
use vesper_esp::aead::primitive::Unsupported;

use super::{Outcome, Skip};
use crate::formats::{PrimitiveTest, Validity};

/// Seals and opens, or only opens what must not open.
pub(super) fn run(test: &PrimitiveTest, implementation: Implementation) -> Outcome {
    match attempt(test, implementation) {
        Ok(()) => Outcome::Passed,
        Err(outcome) => outcome,
    }
}

fn attempt(test: &PrimitiveTest, implementation: Implementation) -> Result<(), Outcome> {
    let skip = |unsupported| match test.validity {
        // To refuse the lengths is the right answer, but to lack the algorithm is none.
        Validity::InvalidParameters if !matches!(unsupported, Unsupported::Primitive(_)) => {
            Outcome::Passed
        }
        _ => Outcome::Skipped(Skip::Unsupported(unsupported)),
    };
    let fail = |reason: &str| Outcome::Failed(reason.to_owned());
    let PrimitiveTest { nonce, aad, .. } = test;
    let key = test
        .primitive
        .key(implementation, &test.key, nonce.len(), test.tag.len())
        .map_err(skip)?;

    let mut opened = test.sealed.clone();
    let authentic = key.open(nonce, aad, &mut opened, &test.tag).map_err(skip)?;
    if test.validity != Validity::Valid {
        return match authentic {
            true => Err(fail("a forgery was accepted")),
            false if opened.iter().any(|&byte| byte != 0) => {
                Err(fail("the text of a forgery was not wiped"))
            }
            false => Ok(()),
        };
    }
    let text = test.text.as_deref().unwrap_or_default();
    if !authentic {
        return Err(fail("the right tag was refused"));
    }
    if opened != text {
        return Err(fail("opened to another text"));
    }
    let mut sealed = text.to_vec();
    let mut tag = vec![0; test.tag.len()];
    key.seal(nonce, aad, &mut sealed, &mut tag).map_err(skip)?;
    if sealed != test.sealed {
        return Err(fail("sealed to another text"));
    }
    if tag != test.tag {
        return Err(fail("sealed with another tag"));
    }
    Ok(())
}
