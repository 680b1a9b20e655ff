// PeerJS's own server with its defaults, but for two that the benchmark would run into: it takes more than 5,000
// clients, and does not end those that send no heartbeat for 90 s.
import { PeerServer } from 'peer'

PeerServer({
  host: '127.0.0.1', port: Number(process.env.PORT), concurrent_limit: 100000, alive_timeout: 3600000
})
