"""libtorrent as a seeder or downloader, and as the maker of torrents. Talks to trackers only: no DHT, no
exchange of peers, no local discovery, so whoever is found was named by a tracker.

  torrent_client.py make CONTENT TORRENT ANNOUNCE_URL    one file, one tracker; prints the info hash
  torrent_client.py run FOLDER V4 V6 QUERY TORRENT...    until its stdin ends; QUERY is added to the
                                                         tracker's URL, for a client that says more
"""

import sys
import threading
import time

import libtorrent as lt


def make(content, torrent, url):
    folder = content.rpartition("/")[0]
    made = lt.create_torrent(lt.list_files(content), 64 * 1024, lt.create_torrent.v1_only)
    made.add_tracker(url)
    lt.set_piece_hashes(made, folder)
    with open(torrent, "wb") as file:
        file.write(lt.bencode(made.generate()))
    print(lt.torrent_info(torrent).info_hash())


def run(folder, v4, v6, query, *torrents):
    session = lt.session(
        {
            "listen_interfaces": f"{v4}:6881,[{v6}]:6881",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "enable_outgoing_utp": False,
            "enable_incoming_utp": False,
            "alert_mask": lt.alert.category_t.tracker_notification
            | lt.alert.category_t.error_notification
            | lt.alert.category_t.status_notification,
        }
    )
    for torrent in torrents:
        params = lt.load_torrent_file(torrent)
        params.trackers = [url + query for url in params.trackers]
        params.save_path = folder
        params.flags |= lt.torrent_flags.disable_pex
        session.add_torrent(params)
    while True:
        for alert in session.pop_alerts():
            print(alert, flush=True)
        time.sleep(0.1)


if sys.argv[1] == "make":
    make(*sys.argv[2:])
else:
    threading.Thread(target=run, args=sys.argv[2:], daemon=True).start()
    sys.stdin.read()
