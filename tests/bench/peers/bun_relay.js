// The bare relay on Bun, the stack of the original: an id from the URL, look up the target, set the sender, pass on.
const ends = new Map()

Bun.serve({
  hostname: '127.0.0.1',
  port: Number(process.env.PORT),
  fetch (request, server) {
    const id = new URL(request.url).searchParams.get('id')
    if (server.upgrade(request, { data: { id } })) return undefined
    return new Response('a WebSocket is wanted', { status: 426 })
  },
  websocket: {
    perMessageDeflate: false,
    maxPayloadLength: 65536,
    open (socket) {
      ends.set(socket.data.id, socket)
    },
    message (socket, text) {
      let message
      try {
        message = JSON.parse(text)
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
      message.from = socket.data.id
      target.send(JSON.stringify(message))
    },
    close (socket) {
      if (ends.get(socket.data.id) === socket) ends.delete(socket.data.id)
    }
  }
})
