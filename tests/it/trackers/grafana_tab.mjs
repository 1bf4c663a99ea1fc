// A browser's tab with a Grafana dashboard: Grafana's own client library, one line per event, one call per line
// of stdin. Arguments: URL, file of the CA, Origin.
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { Centrifuge } from 'centrifuge'
import WebSocket from 'ws'

const [url, ca, origin] = process.argv.slice(1)

// Every name is this machine.
function lookup (_host, options, found) {
  options.all ? found(null, [{ address: '127.0.0.1', family: 4 }]) : found(null, '127.0.0.1', 4)
}

class Browser extends WebSocket {
  constructor (address, protocols) {
    super(address, protocols, {
      ca: readFileSync(ca),
      origin,
      lookup,
      headers: { Cookie: 'grafana_session=5b1c' }
    })
    this.on('upgrade', answer => console.log('extensions', answer.headers['sec-websocket-extensions']))
  }
}

const live = new Centrifuge(url, { timeout: 30000, websocket: Browser })
live.on('connected', () => console.log('connected'))
live.on('connecting', why => console.log('connecting', why.code, why.reason))
live.on('disconnected', why => console.log('disconnected', why.code, why.reason))
live.on('error', why => console.log('error', why.error.message))
const dashboard = live.newSubscription('1/grafana/dashboard/uid/stack')
dashboard.on('subscribed', () => console.log('subscribed'))
dashboard.on('publication', publication => console.log('publication', publication.data.pings))
dashboard.subscribe()
live.connect()

createInterface({ input: process.stdin })
  .on('line', async size => {
    const query = 'q'.repeat(Number(size))
    const answer = await live.rpc('grafana.query', { query })
    console.log(answer.data.query === query ? `answered ${size}.` : 'another answer')
  })
  .on('close', () => process.exit(0))
