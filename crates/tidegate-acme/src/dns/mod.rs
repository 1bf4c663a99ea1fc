//! Publishing TXT records for dns-01: RFC 2136, a program, a webhook, providers.
