//! Pure decisions: when to renew, when to try again, whether an order may be placed, how to prove control.
