// bittorrent-tracker with its defaults, WebSocket alone.
import Server from 'bittorrent-tracker/server' // the package's index needs a native WebRTC library for its client

const server = new Server({ http: false, udp: false, ws: true, stats: false })
server.on('error', problem => { throw problem })
server.on('warning', () => {}) // a client's mistake
server.listen(Number(process.env.PORT), '127.0.0.1')
