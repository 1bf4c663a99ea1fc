//! Taking over certificates and accounts of certbot, Caddy and Traefik.
