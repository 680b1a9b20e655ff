// The bare relay on `ws` and Node: an id from the URL, look up the target, set the sender, pass on.
import { WebSocketServer } from 'ws'

const ends = new Map()
const server = new WebSocketServer({
  host: '127.0.0.1', port: Number(process.env.PORT), perMessageDeflate: false, maxPayload: 65536
})

server.on('connection', (socket, request) => {
  const id = new URL(request.url, 'ws://localhost').searchParams.get('id')
  ends.set(id, socket)
  socket.on('message', data => {
    let message
    try {
      message = JSON.parse(data)
    } catch {
      socket.close(1007)
      return
    }
    const target = ends.get(message.to)
    if (target === undefined) {
      socket.send('{"type":"error","code":"unknown-target"}')
      return
    }
    message.to = undefined // left out by stringify
    message.from = id
    target.send(JSON.stringify(message))
  })
  socket.on('close', () => {
    if (ends.get(id) === socket) ends.delete(id)
  })
  socket.on('error', () => {})
})
