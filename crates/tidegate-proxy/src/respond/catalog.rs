//! The words of error pages, as a table: one row per status, one column per language.
//!
//! Written for the person in front of the browser, who can neither see the server nor its logs.

use http::StatusCode;

/// Languages that error pages speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    English,
    German,
    Spanish,
    French,
}

/// Title and explanation of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) title: &'static str,
    pub(super) explanation: &'static str,
}

impl Language {
    /// Every language, in the order of the table's columns.
    #[cfg(test)]
    pub(super) const ALL: [Self; 4] = [Self::English, Self::German, Self::Spanish, Self::French];

    /// Parses a primary language subtag (RFC 5646 §2.2.1).
    pub(super) fn parse(subtag: &str) -> Option<Self> {
        match subtag.to_ascii_lowercase().as_str() {
            "en" => Some(Self::English),
            "de" => Some(Self::German),
            "es" => Some(Self::Spanish),
            "fr" => Some(Self::French),
            _ => None,
        }
    }

    pub(super) const fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::German => "de",
            Self::Spanish => "es",
            Self::French => "fr",
        }
    }

    pub(super) const fn id_label(self) -> &'static str {
        match self {
            Self::English => "Request id",
            Self::German => "Anfrage-ID",
            Self::Spanish => "ID de la solicitud",
            Self::French => "ID de la requête",
        }
    }

    pub(super) const fn reason_label(self) -> &'static str {
        match self {
            Self::English => "Reason",
            Self::German => "Grund",
            Self::Spanish => "Motivo",
            Self::French => "Raison",
        }
    }

    const fn column(self) -> usize {
        match self {
            Self::English => 0,
            Self::German => 1,
            Self::Spanish => 2,
            Self::French => 3,
        }
    }
}

/// The words for a reason that has some of its own, else for the status; its class stands in for one without a row.
pub(super) fn words(status: StatusCode, reason: &str, language: Language) -> Words {
    let code = status.as_u16();
    let own = REASONS.iter().find(|(of, _)| *of == reason);
    let own = own.map(|(_, texts)| texts);
    let row = ROWS.iter().find(|(row, _)| *row == code);
    let texts = match own.or(row.map(|(_, texts)| texts)) {
        Some(texts) => texts,
        None if status.is_client_error() => &CLIENT_ERROR,
        None => &SERVER_ERROR,
    };
    let (title, explanation) = texts[language.column()];
    Words { title, explanation }
}

type Texts = [(&'static str, &'static str); 4];

const CLIENT_ERROR: Texts = [
    ("Request refused", "The server did not accept this request."),
    (
        "Anfrage abgelehnt",
        "Der Server hat diese Anfrage nicht angenommen.",
    ),
    (
        "Solicitud rechazada",
        "El servidor no ha aceptado esta solicitud.",
    ),
    (
        "Requête refusée",
        "Le serveur n’a pas accepté cette requête.",
    ),
];

const SERVER_ERROR: Texts = [
    (
        "Something went wrong",
        "The server could not answer this request. Please try again in a moment.",
    ),
    (
        "Etwas ist schiefgegangen",
        "Der Server konnte diese Anfrage nicht beantworten. Bitte versuche es gleich noch einmal.",
    ),
    (
        "Algo ha salido mal",
        "El servidor no ha podido responder a esta solicitud. Inténtelo de nuevo en un momento.",
    ),
    (
        "Une erreur est survenue",
        "Le serveur n’a pas pu répondre à cette requête. Réessayez dans un instant.",
    ),
];

/// Reasons of which people can be told more than their status says.
const REASONS: &[(&str, Texts)] = &[(
    "AgentNotConnected",
    [
        (
            "This service is offline",
            "The place where it runs is not connected right now. This page tries again by itself.",
        ),
        (
            "Dieser Dienst ist offline",
            "Der Ort, an dem er läuft, ist gerade nicht verbunden. Diese Seite versucht es von selbst wieder.",
        ),
        (
            "Este servicio no está en línea",
            "El lugar donde funciona no está conectado ahora mismo. Esta página lo vuelve a intentar sola.",
        ),
        (
            "Ce service est hors ligne",
            "L’endroit où il fonctionne n’est pas connecté pour le moment. Cette page réessaie d’elle-même.",
        ),
    ],
)];

const ROWS: &[(u16, Texts)] = &[
    (
        400,
        [
            (
                "Bad request",
                "The request is not well-formed, so it was not passed on.",
            ),
            (
                "Ungültige Anfrage",
                "Die Anfrage ist fehlerhaft aufgebaut und wurde nicht weitergegeben.",
            ),
            (
                "Solicitud incorrecta",
                "La solicitud está mal formada y no se ha transmitido.",
            ),
            (
                "Requête invalide",
                "La requête est mal formée et n’a pas été transmise.",
            ),
        ],
    ),
    (
        401,
        [
            (
                "Sign-in needed",
                "This page asks for a name and a password, and those sent were missing or wrong.",
            ),
            (
                "Anmeldung nötig",
                "Diese Seite verlangt Namen und Passwort; sie fehlten oder waren falsch.",
            ),
            (
                "Se necesita iniciar sesión",
                "Esta página pide un nombre y una contraseña, y faltaban o eran incorrectos.",
            ),
            (
                "Connexion nécessaire",
                "Cette page demande un nom et un mot de passe ; ils manquaient ou étaient incorrects.",
            ),
        ],
    ),
    (
        403,
        [
            (
                "Access denied",
                "You are not allowed to open this from where you are.",
            ),
            (
                "Zugriff verweigert",
                "Von hier aus darfst du diese Seite nicht öffnen.",
            ),
            (
                "Acceso denegado",
                "No tiene permiso para abrir esta página desde aquí.",
            ),
            (
                "Accès refusé",
                "Vous n’êtes pas autorisé à ouvrir cette page d’ici.",
            ),
        ],
    ),
    (
        404,
        [
            (
                "Nothing here",
                "There is nothing at this address. Please check that it is spelled correctly.",
            ),
            (
                "Hier ist nichts",
                "Unter dieser Adresse gibt es nichts. Bitte prüfe, ob sie richtig geschrieben ist.",
            ),
            (
                "Aquí no hay nada",
                "No hay nada en esta dirección. Compruebe que esté bien escrita.",
            ),
            (
                "Rien ici",
                "Il n’y a rien à cette adresse. Vérifiez qu’elle est bien écrite.",
            ),
        ],
    ),
    (
        405,
        [
            (
                "Method not allowed",
                "This address does not accept this kind of request.",
            ),
            (
                "Methode nicht erlaubt",
                "Diese Adresse nimmt diese Art von Anfrage nicht an.",
            ),
            (
                "Método no permitido",
                "Esta dirección no acepta este tipo de solicitud.",
            ),
            (
                "Méthode non autorisée",
                "Cette adresse n’accepte pas ce type de requête.",
            ),
        ],
    ),
    (
        408,
        [
            (
                "Request took too long",
                "The request did not arrive completely in time. Please try again.",
            ),
            (
                "Anfrage dauerte zu lange",
                "Die Anfrage kam nicht rechtzeitig vollständig an. Bitte versuche es noch einmal.",
            ),
            (
                "La solicitud tardó demasiado",
                "La solicitud no llegó completa a tiempo. Inténtelo de nuevo.",
            ),
            (
                "Requête trop lente",
                "La requête n’est pas arrivée entière à temps. Veuillez réessayer.",
            ),
        ],
    ),
    (
        413,
        [
            (
                "Too large",
                "What you are sending is larger than this site accepts.",
            ),
            (
                "Zu groß",
                "Was du sendest, ist größer, als diese Seite annimmt.",
            ),
            (
                "Demasiado grande",
                "Lo que envía es más grande de lo que acepta este sitio.",
            ),
            (
                "Trop volumineux",
                "Ce que vous envoyez dépasse la taille acceptée par ce site.",
            ),
        ],
    ),
    (
        414,
        [
            (
                "Address too long",
                "The address of this request is too long.",
            ),
            ("Adresse zu lang", "Die Adresse dieser Anfrage ist zu lang."),
            (
                "Dirección demasiado larga",
                "La dirección de esta solicitud es demasiado larga.",
            ),
            (
                "Adresse trop longue",
                "L’adresse de cette requête est trop longue.",
            ),
        ],
    ),
    (
        417,
        [
            (
                "Expectation not met",
                "The request expects something that this server does not do.",
            ),
            (
                "Erwartung nicht erfüllbar",
                "Die Anfrage erwartet etwas, das dieser Server nicht kann.",
            ),
            (
                "Expectativa no cumplida",
                "La solicitud espera algo que este servidor no ofrece.",
            ),
            (
                "Attente non satisfaite",
                "La requête attend quelque chose que ce serveur ne fait pas.",
            ),
        ],
    ),
    (
        421,
        [
            (
                "Wrong connection",
                "This site cannot be reached over this connection. Please load the page again.",
            ),
            (
                "Falsche Verbindung",
                "Diese Seite ist über diese Verbindung nicht erreichbar. Bitte lade sie neu.",
            ),
            (
                "Conexión equivocada",
                "No se puede acceder a este sitio por esta conexión. Vuelva a cargar la página.",
            ),
            (
                "Mauvaise connexion",
                "Ce site n’est pas accessible par cette connexion. Veuillez recharger la page.",
            ),
        ],
    ),
    (
        429,
        [
            (
                "Too many requests",
                "You are asking faster than this site allows. Please wait a moment and try again.",
            ),
            (
                "Zu viele Anfragen",
                "Du fragst schneller, als diese Seite erlaubt. Bitte warte einen Moment.",
            ),
            (
                "Demasiadas solicitudes",
                "Pide más rápido de lo que permite este sitio. Espere un momento e inténtelo de nuevo.",
            ),
            (
                "Trop de requêtes",
                "Vous allez plus vite que ce site ne le permet. Patientez un instant, puis réessayez.",
            ),
        ],
    ),
    (
        431,
        [
            (
                "Too much in the header",
                "The request carries too much, often too many cookies. Deleting this site’s cookies may help.",
            ),
            (
                "Kopf der Anfrage zu groß",
                "Die Anfrage trägt zu viel mit sich, oft zu viele Cookies. Cookies dieser Seite zu löschen kann helfen.",
            ),
            (
                "Cabecera demasiado grande",
                "La solicitud lleva demasiado, a menudo demasiadas cookies. Borrar las de este sitio puede ayudar.",
            ),
            (
                "En-tête trop grand",
                "La requête en transporte trop, souvent trop de cookies. Supprimer ceux de ce site peut aider.",
            ),
        ],
    ),
    (500, SERVER_ERROR),
    (
        501,
        [
            (
                "Not supported",
                "This server does not know this kind of request.",
            ),
            (
                "Nicht unterstützt",
                "Dieser Server kennt diese Art von Anfrage nicht.",
            ),
            (
                "No compatible",
                "Este servidor no conoce este tipo de solicitud.",
            ),
            (
                "Non pris en charge",
                "Ce serveur ne connaît pas ce type de requête.",
            ),
        ],
    ),
    (
        502,
        [
            (
                "The service does not answer",
                "This site is reachable, but the service behind it is not. It may be starting. Please try again soon.",
            ),
            (
                "Der Dienst antwortet nicht",
                "Diese Seite ist erreichbar, der Dienst dahinter nicht. Vielleicht startet er gerade. Bitte versuche es bald noch einmal.",
            ),
            (
                "El servicio no responde",
                "Se llega a este sitio, pero no al servicio que hay detrás. Quizá esté arrancando. Inténtelo de nuevo pronto.",
            ),
            (
                "Le service ne répond pas",
                "Ce site est joignable, mais pas le service derrière lui. Il démarre peut-être. Réessayez bientôt.",
            ),
        ],
    ),
    (
        503,
        [
            (
                "Not available right now",
                "The service is overloaded or being worked on. Please try again in a moment.",
            ),
            (
                "Gerade nicht verfügbar",
                "Der Dienst ist überlastet oder wird gewartet. Bitte versuche es gleich noch einmal.",
            ),
            (
                "No disponible ahora",
                "El servicio está sobrecargado o en mantenimiento. Inténtelo de nuevo en un momento.",
            ),
            (
                "Indisponible pour l’instant",
                "Le service est surchargé ou en maintenance. Réessayez dans un instant.",
            ),
        ],
    ),
    (
        504,
        [
            (
                "The service is too slow",
                "The service behind this site did not answer in time. Please try again.",
            ),
            (
                "Der Dienst ist zu langsam",
                "Der Dienst hinter dieser Seite hat nicht rechtzeitig geantwortet. Bitte versuche es noch einmal.",
            ),
            (
                "El servicio tarda demasiado",
                "El servicio que hay detrás de este sitio no respondió a tiempo. Inténtelo de nuevo.",
            ),
            (
                "Le service est trop lent",
                "Le service derrière ce site n’a pas répondu à temps. Veuillez réessayer.",
            ),
        ],
    ),
];
